"""Where DPDK may start: in suites, which have processes of their own (``suites.py``)."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_dpdk_in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.name.endswith("_suite.py"):
        return
    native = pytest.importorskip("genie_backend_dpdk._native", reason="genie-backend-dpdk is not installed")

    def start(arguments: object) -> None:
        pytest.fail("DPDK may not start in pytest's process: put this test into a suite")

    monkeypatch.setattr(native, "start", start)
