"""`genie serve` as installed, with the backend that ships, and a client that finds it by its settings."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from genie import config
from genie.plugins import registry
from genie.testing import Caller, single
from genie.testing.plans import spec


def test_serve_and_use_by_name() -> None:
    command = [sys.executable, "-c", "from genie.cli import main; main()", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout is not None
            ready = json.loads(node.stdout.readline())
            settings = config.resolve({"nodes": ready["address"]}).settings
            assert settings.backend == "tcp"
            backend = registry.make("backend", "tcp", settings)
            device = backend.devices()[0]
            assert device.address == ready["address"]
            caller = Caller(backend.connect(device))
            made = caller.run(single("aten::mm", [spec(2, 2)] * 2, spec(2, 2)), [caller.put([1, 2, 3, 4], 2, 2)] * 2)
            assert caller.get(made) == [7, 10, 15, 22]
            backend.close()
            node.send_signal(signal.SIGTERM)
            assert node.wait(20) == 0
        finally:
            node.kill()
