"""The backend ``auto``: which transport programs and nodes agree on, as processes of their own."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
from pathlib import Path

import pytest

from genie.remote.client.inspection import status
from genie.security import certs, tokens

from . import tiny_lm
from .conftest import MakeNode, StartProgram, command

GENERATING = """
    import json, signal, sys
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    import genie, torch, genie_pytorch, tiny_lm
    lm = tiny_lm.model().to("remote_accelerator:0")
    print("tokens", tiny_lm.generate(lm), flush=True)
    print("carried", json.dumps(genie.get_stats()["transports"]), flush=True)
    if "stay" in sys.argv:
        signal.sigwait({signal.SIGUSR1})
    print("over", flush=True)
"""

# As on a machine whose memory is short: DPDK gets less than its buffers take.
WITHOUT_DPDK = (
    """
    from genie_backend_dpdk import environment
    few = [each for each in environment.start.__defaults__[0] if not each.startswith("-m")]
    environment.start.__defaults__ = ((*few, "-m1"),)
"""
    + GENERATING
)

NOBODY = """
    import genie, genie_pytorch
    from genie.errors import BackendUnavailable
    try:
        genie.init()
    except BackendUnavailable as error:
        print("refused", error.message, flush=True)
"""

TICKETS = """
    import sys
    from genie.errors import BackendError
    from genie.remote.control import ControlClient
    from genie.remote.greeting import farewell, greeting, meet
    from genie.security import Ticket
    from genie.security.tickets import prove_hello
    from genie.wire import PROTOCOL, Kind, frames, messages
    from genie_backend_dpdk import DpdkTransport

    node, control, token = sys.argv[1:]
    transport = DpdkTransport(stall_timeout=20.0)

    def told(session, secret, seconds=20.0):
        try:
            transport.connect_with(node, seconds, session, secret).close()
        except BackendError as error:
            return error.message
        return "connected"

    with ControlClient(control, token=open(token).read().strip()) as client:
        print("unknown", told(1, bytes(32)), flush=True)
        ticket = client.ticket(0)
        print("forged", told(ticket.session, bytes(32), seconds=1.0), flush=True)
        met = meet(transport, node, 0, 10.0, ticket=ticket)
        print("met", met.welcome.tickets, bool(met.welcome.session), flush=True)
        print("again", told(ticket.session, ticket.key), flush=True)
        farewell(met)
        heard, own = client.ticket(0, bound=True), client.ticket(0, bound=True)
        said = messages.put_struct(messages.Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=0))
        under = transport.connect_with(node, 10.0, own.session, own.key)
        under.send(greeting(0, Kind.HELLO, said, heard.id + prove_hello(heard, said)))
        kind, body = frames.split(under.receive(lambda header, sizes: [], 10.0).header)[1][0]
        print("another's", kind == Kind.ERROR, messages.get_error(body, node).message, flush=True)
        met = meet(transport, node, 0, 10.0, ticket=heard)
        print("owner's", bool(met.welcome.session), flush=True)
        farewell(met)
"""


BETWEEN = """
    from genie import config
    from genie.plugins import registry
    from genie.testing import Caller

    backend = registry.make("backend", "auto", config.resolve().settings)
    first, second = (Caller(backend.connect(device)) for device in backend.devices())
    print("carried", sorted(each.transport for each in backend.carried()), flush=True)
    values = [float(each) for each in range(10_000)]
    inlet = second.session.inlet("the first")
    first.session.send(first.session.outlet(inlet), first.put(values))
    second.session.receive(inlet, 0, 1000)
    print("came", second.get(1000) == values, flush=True)
    backend.close()
"""

HERE = """
    import genie, genie_pytorch
    from genie.errors import GenieError
    try:
        genie.init()
        print("devices", len(genie.devices()), flush=True)
    except GenieError as error:
        print("refused", type(error).__name__, error, flush=True)
"""


def free_pair() -> int:
    """A port that is free, as is the one after it; and none that others get who ask for any."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port


def generated() -> str:
    return f"tokens {tiny_lm.generate(tiny_lm.model())}\n"


def carried(line: str) -> tuple[str, dict[str, str]]:
    """Transport and what was passed over, of the one session."""
    (one,) = json.loads(line.removeprefix("carried "))
    return one["transport"], one["passed_over"]


def test_the_socket_of_this_host_where_the_node_has_no_dpdk(make_node: MakeNode, program: StartProgram) -> None:
    node = make_node()
    running = program(GENERATING, node, GENIE_BACKEND="auto")
    assert running.said("tokens") == generated()
    transport, passed_over = carried(running.said("carried"))
    assert transport == "unix"
    assert list(passed_over) == ["dpdk"]
    assert running.ended()[0] == 0
    found = json.loads(command("doctor", node.address, "--megabytes", "1", "--json").stdout)
    (finding,) = [each for each in found if each["check"] == "transport"]
    assert finding["level"] == "ok"
    assert finding["text"].startswith("unix is the best of dpdk, unix, tcp; dpdk: ")


def test_tcp_alone(make_node: MakeNode, program: StartProgram) -> None:
    node = make_node(GENIE_UNIX_SOCKETS="0")
    running = program(GENERATING, node, GENIE_BACKEND="auto", GENIE_TRANSPORTS="unix,tcp")
    assert running.said("tokens") == generated()
    assert carried(running.said("carried")) == ("tcp", {"unix": "the node has no Unix socket"})
    assert running.ended()[0] == 0


def test_nobody_is_one_clear_error(program: StartProgram) -> None:
    running = program(NOBODY, GENIE_BACKEND="auto", GENIE_NODES="127.0.0.1:1", GENIE_CONNECT_TIMEOUT="3")
    said = running.said("refused")
    assert said.startswith("refused no transport leads to the node: dpdk: ")
    assert "; unix: the node's control plane does not say what it listens with: " in said
    assert "; tcp: no node answers at 127.0.0.1:1" in said
    assert running.ended()[0] == 0


class TestDpdk:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

    def test_dpdk_where_both_have_it(self, make_node: MakeNode, program: StartProgram) -> None:
        node = make_node("--transport", "dpdk,tcp")
        running = program(GENERATING, node, args=("stay",), GENIE_BACKEND="auto")
        assert running.said("tokens") == generated()
        assert carried(running.said("carried")) == ("dpdk", {})
        seen = status(node.address)
        assert [session.transport for session in seen.sessions] == ["dpdk"]
        assert {way.transport for way in seen.ways} == {"dpdk", "unix", "tcp"}
        running.signal(signal.SIGUSR1)
        assert running.ended() == (0, "over\n", "")

    def test_a_node_with_nothing_else(self, make_node: MakeNode, program: StartProgram) -> None:
        """Its control plane is at the port after its own."""
        node = make_node("--transport", "dpdk", "--port", str(free_pair()))
        running = program(GENERATING, node, GENIE_BACKEND="auto")
        assert running.said("tokens") == generated()
        assert carried(running.said("carried"))[0] == "dpdk"
        assert running.ended()[0] == 0

    def test_where_dpdk_does_not_start_another_takes_over(self, make_node: MakeNode, program: StartProgram) -> None:
        node = make_node("--transport", "dpdk,tcp")
        running = program(WITHOUT_DPDK, node, args=("stay",), GENIE_BACKEND="auto")
        assert running.said("tokens") == generated()
        transport, passed_over = carried(running.said("carried"))
        assert transport == "unix"
        assert passed_over["dpdk"].startswith("DPDK does not start here: ")
        (session,) = status(node.address).sessions
        assert (session.transport, session.passed_over) == (transport, passed_over)
        running.signal(signal.SIGUSR1)
        assert running.ended()[0] == 0

    def test_another_device_is_passed_over(self, make_node: MakeNode, program: StartProgram) -> None:
        node = make_node("--transport", "dpdk,tcp")
        running = program(GENERATING, node, GENIE_BACKEND="auto", GENIE_DPDK_DEVICE="vdev:af_packet,iface=none0")
        assert running.said("tokens") == generated()
        assert carried(running.said("carried")) == (
            "unix",
            {"dpdk": "the node listens with memif devices, and this side has the interface none0"},
        )
        assert running.ended()[0] == 0

    def test_packets_are_under_the_ticket_from_the_first_on(
        self, make_node: MakeNode, program: StartProgram, tmp_path: Path
    ) -> None:
        (tmp_path / "alice").write_text(tokens.add(tmp_path / "tokens.json", "alice"))
        node = make_node("--transport", "dpdk,tcp", "--tokens", str(tmp_path / "tokens.json"))
        running = program(TICKETS, args=(node.address, node.control, str(tmp_path / "alice")))
        assert running.said("unknown") == "unknown the node does not know the ticket\n"
        assert "no answer" in running.said("forged")
        assert running.said("met") == "met True True\n"
        assert running.said("again") == "again the node does not know the ticket\n"
        assert running.said("another's") == "another's True the ticket is not the one that protects this connection\n"
        assert running.said("owner's") == "owner's True\n"
        assert running.ended()[0] == 0
        running = program(GENERATING, node, GENIE_BACKEND="auto", GENIE_TOKEN_FILE=str(tmp_path / "alice"))
        assert running.said("tokens") == generated()
        assert carried(running.said("carried")) == ("dpdk", {})
        assert running.ended()[0] == 0


class TestPlainData:
    """Tokens and TLS on the control plane, data over memif: what hosts of a rack do, on one."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        certs.create_authority(tmp_path)
        certs.issue_node(tmp_path, ["127.0.0.1"])
        certs.issue_client(tmp_path, "alice")
        (tmp_path / "token").write_text(tokens.add(tmp_path / "tokens.json", "alice"))
        return tmp_path

    @pytest.fixture
    def tls(self, files: Path) -> tuple[str, ...]:
        return ("--cert", str(files / "node-127.0.0.1.pem"), "--key", str(files / "node-127.0.0.1.key"))

    def test_dpdk_under_tickets_that_came_over_tls(
        self, make_node: MakeNode, program: StartProgram, files: Path, tls: tuple[str, ...]
    ) -> None:
        asking = ("--tokens", str(files / "tokens.json"))
        node = make_node("--transport", "dpdk,tcp", *tls, "--ca", str(files / "ca.pem"), *asking, "--plain-data")
        assert "WARNING: PLAIN DATA" in node.log.read_text()
        mine = {"GENIE_CA": str(files / "ca.pem"), "GENIE_TOKEN_FILE": str(files / "token")}
        plain = {**mine, "GENIE_PLAIN_DATA": "1"}
        for backend in ("dpdk", "auto"):
            running = program(GENERATING, node, args=("stay",), GENIE_BACKEND=backend, **plain)
            assert running.said("tokens") == generated()
            (session,) = json.loads(running.said("carried").removeprefix("carried "))
            assert (session["transport"], session["protection"]) == ("dpdk", "authenticated, not encrypted")
            asked = json.loads(command("node", "status", node.address, "--json", **mine).stdout)
            (seen,) = asked["sessions"]
            assert (seen["user"], seen["transport"]) == ("alice", "dpdk")
            assert seen["protection"] == "authenticated, not encrypted"
            running.signal(signal.SIGUSR1)
            assert running.ended()[0] == 0
        running = program(GENERATING, node, GENIE_BACKEND="auto", GENIE_TRANSPORTS="dpdk,tcp", **mine)
        assert running.said("tokens") == generated()
        (session,) = json.loads(running.said("carried").removeprefix("carried "))
        assert (session["transport"], session["protection"]) == ("tcp", "TLS")
        assert "'plain_data' is off" in session["passed_over"]["dpdk"]
        assert running.ended()[0] == 0
        for refused, reason in (
            (mine, "does not speak"),  # the client does not allow it
            ({**plain, "GENIE_TOKEN_FILE": ""}, "who has a token"),  # the node gives no ticket
            ({"GENIE_TOKEN_FILE": mine["GENIE_TOKEN_FILE"]}, "control plane"),  # the client does not speak TLS
        ):
            running = program(HERE, node, GENIE_BACKEND="dpdk", **refused)
            assert reason in running.said("refused")
            assert running.ended()[0] == 0
        found = json.loads(command("doctor", node.address, "--megabytes", "1", "--json", **plain).stdout)
        (secrecy,) = [each for each in found if each["check"] == "secrecy"]
        assert "what dpdk carries is authenticated, not encrypted" in secrecy["text"]

    def test_nodes_send_each_other_values_over_tls(
        self, make_node: MakeNode, program: StartProgram, files: Path, tls: tuple[str, ...]
    ) -> None:
        asking = ("--ca", str(files / "ca.pem"), "--tokens", str(files / "tokens.json"), "--plain-data")
        nodes = [make_node("--transport", "dpdk,tcp", *tls, *asking) for _ in range(2)]
        mine = {"GENIE_CA": str(files / "ca.pem"), "GENIE_TOKEN_FILE": str(files / "token"), "GENIE_PLAIN_DATA": "1"}
        running = program(BETWEEN, *nodes, **mine)
        assert running.said("carried") == "carried ['dpdk', 'dpdk']\n"
        assert running.said("came") == "came True\n"
        assert running.ended()[0] == 0

    def test_a_certificate_yields_a_ticket(
        self, make_node: MakeNode, program: StartProgram, files: Path, tls: tuple[str, ...]
    ) -> None:
        node = make_node("--transport", "dpdk", *tls, "--client-ca", str(files / "ca.pem"), "--plain-data")
        mine = {"GENIE_CA": str(files / "ca.pem"), "GENIE_PLAIN_DATA": "1", "GENIE_BACKEND": "dpdk"}
        shown = {"GENIE_CERT": str(files / "client-alice.pem"), "GENIE_KEY": str(files / "client-alice.key")}
        running = program(GENERATING, node, **mine, **shown)
        assert running.said("tokens") == generated()
        assert running.ended()[0] == 0
        running = program(HERE, node, **mine)
        assert running.said("refused")
        assert running.ended()[0] == 0

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (("--tokens", "tokens.json"), "does not speak TLS: dpdk"),
            (("--plain-data",), "no way to tell clients"),
        ],
    )
    def test_what_a_node_does_not_start_with(
        self, files: Path, tls: tuple[str, ...], options: tuple[str, ...], reason: str
    ) -> None:
        given = [str(files / each) if each.endswith(".json") else each for each in options]
        done = command("serve", "--port", "0", "--transport", "dpdk", *tls, *given)
        assert done.returncode != 0
        first, *rest = done.stderr.strip().splitlines()
        assert reason in first
        assert all(line.startswith(("  where:", "  hint:")) for line in rest)
        assert ("--plain-data" in "".join(rest)) == ("--plain-data" not in options)
