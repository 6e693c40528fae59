"""XLA's client for this machine's CPU, from jaxlib alone."""

from __future__ import annotations

import os
import threading
from typing import Any

_lock = threading.Lock()
_client: Any = None


def client() -> Any:
    """The process's one, made now if need be. A call of it is done when it returns."""
    global _client
    with _lock:
        if _client is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its greetings are no news
            from jaxlib import lapack, xla_client
            from jaxlib.cpu import _lapack

            made = xla_client.make_cpu_client(asynchronous=False)
            _lapack.initialize()
            for system, targets in lapack.registrations().items():
                for name, handler, version in targets:
                    xla_client.register_custom_call_target(name, handler, platform=system, api_version=version)
            _client = made
        return _client


def compile(client: Any, module: bytes) -> Any:
    from jaxlib import _jax

    return client.compile_and_load(module, _jax.DeviceList(tuple(client.local_devices())), _options())


def load(client: Any, executable: bytes) -> Any:
    """What :func:`compile` made, in another process on this machine, and the client serialized."""
    from jaxlib import _jax

    return client.deserialize_executable(executable, _jax.DeviceList(tuple(client.local_devices())), _options())


def _options() -> Any:
    from jaxlib import xla_client

    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    return options
