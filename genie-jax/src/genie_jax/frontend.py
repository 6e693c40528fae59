"""JAX's programs for Genie: :class:`genie.interfaces.Frontend`.

It is made wherever it is installed, to be asked whose a program is: so JAX is imported with the first of JAX's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from genie.graph import TensorSpec
from genie.interfaces import Buffer, Engine

if TYPE_CHECKING:
    import jax


class JaxFrontend:
    name = "jax"

    def compile(self, program: Callable[..., Any], engine: Engine) -> Callable[..., Any]:
        from genie_jax.device import place_of
        from genie_jax.functions import Remote

        return Remote(program, lambda: place_of(engine), (), ())

    def accepts(self, program: object) -> bool:
        if "jax" not in sys.modules:  # then it is nothing of JAX's
            return False
        import jax

        from genie_jax.arrays import RemoteArray
        from genie_jax.functions import Remote

        return isinstance(program, jax.Array | RemoteArray | Remote)

    def to_host(self, tensor: Any) -> tuple[TensorSpec, Buffer]:
        import numpy as np

        from genie_jax.dtypes import carried

        array = np.ascontiguousarray(tensor)
        return TensorSpec(tuple(array.shape), carried(array.dtype)), array.reshape(-1).view(np.uint8).data

    def from_host(self, spec: TensorSpec, data: Buffer) -> jax.Array:
        import jax
        import numpy as np

        return jax.numpy.asarray(np.frombuffer(data, spec.dtype).reshape(spec.shape))
