"""Timings over the wire."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from remote.peers import Node, Script

from genie.errors import LocalProtocolError, ProtocolError
from genie.interfaces import Connection, Profiling
from genie.remote import RemoteBackend, RemoteSession
from genie.testing import MemoryTransport, NullBackend, NullSession
from genie.timing import MOST_ROWS, Operand, Timing
from genie.wire import Kind, frames, profiles

ROW = Timing(
    "aten::mm", "decode", (Operand("float32", (1, 8)),), (Operand("float32", (1, 8)),), 3, 2e-6, 1e-6, 1e-13, 2e-6
)


def test_rows_survive_the_wire():
    assert profiles.get_rows(profiles.put_rows([ROW])) == (ROW,)


def test_the_most_counted_are_sent_when_there_is_no_room():
    rows = [msgspec.structs.replace(ROW, target=f"aten::{'x' * 200}{n}", count=n + 1) for n in range(6000)]
    packed = profiles.put_rows(rows)
    kept = profiles.get_rows(packed)
    assert len(packed) <= profiles.MOST_BYTES
    assert 1000 < len(kept) <= MOST_ROWS
    assert min(row.count for row in kept) > 6000 - len(kept)


@pytest.mark.parametrize(
    "change",
    [
        {"target": ""},
        {"target": "x" * 300},
        {"target": "aten::\x1b[31m"},
        {"phase": "lunch"},
        {"operands": (Operand("float99", (1,)),)},
        {"operands": (Operand("float32", (-1,)),)},
        {"operands": (Operand("float32", (1,) * 65),)},
        {"count": 0},
        {"mean": -1.0},
        {"typical": float("nan")},
        {"variance": float("inf")},
    ],
)
def test_impossible_rows_are_refused(change):
    packed = msgspec.msgpack.encode([msgspec.structs.replace(ROW, **change)])
    with pytest.raises(ProtocolError, match="impossible timing"):
        profiles.get_rows(packed)


@pytest.mark.parametrize("data", [b"\xc1", b"\x93\x01", msgspec.msgpack.encode([1, 2]), b"\x00" * (2 << 20)])
def test_malformed_rows_are_refused(data: bytes):
    with pytest.raises(ProtocolError):
        profiles.get_rows(data)


@pytest.mark.parametrize("data", [b"\x00", b"\x00" * 9, b"\x00\x00\x00\x00\x00\x00\xf8\x7f"])
def test_malformed_shares_are_refused(data: bytes):
    with pytest.raises(ProtocolError):
        profiles.get_share(data)


class _Timed(NullSession):
    asked: list[float | None]

    def profile(self, share: float | None = None) -> tuple[Timing, ...]:
        self.asked.append(share)
        return (ROW,)


class _TimedBackend(NullBackend):
    def connect(self, device):
        session = _Timed(device, 1 << 20)
        session.asked = []
        self.sessions.append(session)
        return session


def test_a_client_learns_what_the_nodes_session_says():
    from genie.remote import NodeServer

    local, transport = _TimedBackend(), MemoryTransport(stall_timeout=10.0)
    with NodeServer(local, transport, "node:0") as node:
        backend = RemoteBackend("memory", transport, (node.address,))
        try:
            session = backend.connect(backend.devices()[0])
            assert isinstance(session, Profiling)
            assert session.profile() == (ROW,)
            assert session.profile(share=0.25) == (ROW,)
            served = local.sessions[-1]
            assert isinstance(served, _Timed)
            assert served.asked == [None, 0.25]
            with pytest.raises(LocalProtocolError, match="share of the time"):
                session.profile(share=2.0)
            session.synchronize()  # nothing is out of step
        finally:
            backend.close()


def test_a_backend_that_does_not_time_has_no_rows(node: Node):
    session = node.client().session
    assert isinstance(session, Profiling)
    assert session.profile() == ()


def test_a_lying_node_ends_the_session(scripted: Callable[[Script], RemoteSession]):
    def script(connection: Connection) -> None:
        message = connection.receive(lambda header, sizes: (), 5.0)
        seq = frames.sequence(message.header)
        bad = msgspec.msgpack.encode([msgspec.structs.replace(ROW, mean=-1.0)])
        connection.send(frames.one(seq, Kind.PROFILED, bad))
        connection.receive(lambda header, sizes: (), 5.0)

    session = scripted(script)
    with pytest.raises(ProtocolError, match="impossible timing"):
        session.profile()
    assert session.closed
