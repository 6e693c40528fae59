"""Every test here runs JAX's programs on the local backend, in this process, beside JAX itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import genie
from genie import runtime

os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(autouse=True)
def local_backend() -> None:
    settings = runtime.current().settings
    if (settings.backend, settings.engine) != ("local", "aten"):  # the rules are tested here, whatever else there is
        genie.shutdown()
        genie.init(engine="aten")
    return


@pytest.fixture
def same_as_jax() -> Callable[..., None]:
    """Runs a function remotely and by JAX: integers and types equal, floats to ``tolerance`` of the largest."""
    import genie_jax
    import jax

    def check(function: Callable[..., Any], *args: Any, tolerance: float = 0.0) -> None:
        expected = jax.tree_util.tree_leaves(jax.jit(function)(*args))
        made = jax.tree_util.tree_leaves(genie_jax.remote(function)(*args))
        assert len(made) == len(expected)
        for number, (remote, local) in enumerate(zip(made, expected, strict=True)):
            if jax.dtypes.issubdtype(local.dtype, jax.dtypes.prng_key):
                assert remote.dtype == local.dtype
                continue
            here, there = np.asarray(local), np.asarray(remote)
            assert (there.dtype, there.shape) == (here.dtype, here.shape), f"result {number}"
            if here.dtype.kind == "V" or here.dtype.name.startswith(("bfloat", "float8")):  # which NumPy cannot compare
                here, there = here.astype(np.float32), there.astype(np.float32)
            if not tolerance or here.dtype.kind in "biu":
                np.testing.assert_array_equal(there, here, err_msg=f"result {number}")
                continue
            wide = np.complex128 if here.dtype.kind == "c" else np.float64
            finite = np.abs(here[np.isfinite(here)].astype(wide))
            scale = max(1.0, float(finite.max())) if finite.size else 1.0
            np.testing.assert_allclose(
                there.astype(wide),
                here.astype(wide),
                rtol=tolerance,
                atol=tolerance * scale,
                err_msg=f"result {number}",
            )

    return check
