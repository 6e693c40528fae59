"""A node in a process of its own, for the time of a ``with``."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence

# Of this process and all it starts; here, because what reads it does so when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

_START_SECONDS = 180.0
_STOP_SECONDS = 10.0


@contextlib.contextmanager
def node(
    device: str = "cpu", threads: int = 1, options: Sequence[str] = (), cores: Sequence[int] = ()
) -> Iterator[str]:
    """Its address, once it is ready. Ends sessions of this process, then the node, whatever happens. With ``cores``
    it runs on these alone."""
    import genie

    command = [sys.executable, "-m", "genie", "serve", "--port", "0", "--device", device, "--json"]
    command += ["--threads", str(threads), *options]
    if cores:
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # A session of its own: Ctrl-C is for the benchmark, which then stops the node.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    try:
        if not select.select([process.stdout], [], [], _START_SECONDS)[0]:
            raise RuntimeError(f"the node was not ready within {_START_SECONDS:g} s")
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the node ended with status {process.wait(_STOP_SECONDS)}; its reason is above")
        yield str(json.loads(line)["address"])
    finally:
        genie.shutdown()
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
