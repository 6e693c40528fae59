"""Nodes that are reached over DPDK's memif devices, and over TCP where that can't be."""

from __future__ import annotations

import pytest

from genie.remote.client.inspection import status

from . import tiny_lm
from .conftest import MakeNode, StartProgram, command

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

GENERATING = """
    import genie, torch, genie_pytorch, tiny_lm
    lm = tiny_lm.model().to("remote_accelerator:0")
    print("tokens", tiny_lm.generate(lm), flush=True)
    stats = genie.get_stats()
    print("over", sorted(name for name in stats if name.startswith("devices_")), flush=True)
"""


def generated() -> str:
    return f"tokens {tiny_lm.generate(tiny_lm.model())}\n"


def test_a_model_generates_the_same_tokens(make_node: MakeNode, program: StartProgram) -> None:
    node = make_node("--transport", "dpdk", "--dpdk-device", "vdev:memif")
    assert node.facts["transports"] == ["dpdk"]
    for _ in range(2):  # one program after the other
        running = program(GENERATING, node, GENIE_BACKEND="dpdk")
        assert running.said("tokens") == generated()
        assert running.said("over") == "over ['devices_dpdk']\n"
        assert running.ended() == (0, "", "")
        node.wait_for_sessions(0)


def test_a_node_with_both_takes_each_client_as_it_comes(make_node: MakeNode, program: StartProgram) -> None:
    node = make_node("--transport", "dpdk,tcp")
    assert node.facts["transports"] == ["dpdk", "tcp"]
    assert status(node.address).transports == ("dpdk", "tcp")
    for backends, used in (("dpdk", "dpdk"), ("tcp", "tcp"), ("dpdk,tcp", "dpdk")):
        running = program(GENERATING, node, GENIE_BACKEND=backends)
        assert running.said("tokens") == generated()
        assert running.said("over") == f"over ['devices_{used}']\n"
        assert running.ended() == (0, "", "")


def test_tcp_takes_over_where_the_user_allows_it(make_node: MakeNode, program: StartProgram) -> None:
    node = make_node()
    running = program(GENERATING, node, GENIE_BACKEND="dpdk,tcp")
    assert running.said("tokens") == generated()
    assert running.said("over") == "over ['devices_tcp']\n"
    status, _, err = running.ended()
    assert status == 0
    assert "backend passed over" in err
    assert "no node answers" in err


def test_a_malformed_device_is_one_clear_line() -> None:
    done = command("serve", "--transport", "dpdk", "--dpdk-device", "memif")
    assert done.returncode != 0
    assert "'memif' is no DPDK device" in done.stderr
    assert "Traceback" not in done.stderr
