"""What a program of cases runs a function of JAX's with, so that they run where Genie's settings say.

    PYTHONPATH=benchmarks python benchmarks/run_conformance.py PROGRAM --run jax_cases:run

A node for the time of it, and each case through it. What is refused is for the cases what is not supported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import genie_jax
import jax
import numpy as np


def run(function: Callable[..., Any], *operands: Any) -> Any:
    return jax.tree_util.tree_map(_here, genie_jax.remote(function)(*operands))


def _here(made: Any) -> Any:
    if jax.dtypes.issubdtype(made.dtype, jax.dtypes.prng_key):
        return made.__jax_array__()
    return np.asarray(made)
