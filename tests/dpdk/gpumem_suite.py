"""Messages into and out of a device's memory, over memif; ``test_gpumem.py`` runs it in a process of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from genie.errors import BackendUnavailable, ConnectionLost, GenieError
from genie.wire import Kind, Limits, frames
from genie_backend_dpdk import DpdkTransport, _native, gpumem
from genie_backend_dpdk.connection import DpdkConnection, Target

SECONDS = 20.0
SIZES = (1, 1023, 8 << 10, (64 << 10) - 1, 64 << 10, 1_000_003, 12 << 20)
DEVICES = {
    "readable": {},
    "guarded": {"guarded": True},
    "readable, split": {"splits": True},
    "guarded, split": {"guarded": True, "splits": True},
}


@pytest.fixture(scope="module", params=DEVICES)
def memory(request: pytest.FixtureRequest) -> gpumem.DeviceMemory:
    return gpumem.soft(256 << 20, **DEVICES[request.param])


@contextmanager
def joined(
    path: Path, client: gpumem.DeviceMemory | None, node: gpumem.DeviceMemory | None
) -> Iterator[tuple[DpdkConnection, DpdkConnection]]:
    limits = Limits(buffers=8)
    listener = DpdkTransport(stall_timeout=SECONDS, limits=limits, memory=node).listen(f"memif:{path / 'node.sock'}")
    transport = DpdkTransport(stall_timeout=SECONDS, limits=limits, memory=client)
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listener.accept, SECONDS)
        one = transport.connect(listener.address, SECONDS)
        other = accepted.result(SECONDS)
    try:
        yield one, other
    finally:
        one.close()
        other.close()
        listener.close()


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def filled(memory: gpumem.DeviceMemory, data: bytes) -> gpumem.DeviceBuffer:
    buffer = memory.allocate(len(data))
    buffer.write(data)
    return buffer


def header(sizes: Sequence[int]) -> bytes:
    return frames.message(1, 1, frames.record(Kind.UPLOAD), sizes)


def transfer(
    sender: DpdkConnection,
    receiver: DpdkConnection,
    buffers: Sequence[memoryview | bytes | gpumem.DeviceBuffer],
    targets: Sequence[Target],
) -> None:
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(sender.send, header([len(each) for each in buffers]), buffers)
        receiver.receive(lambda header, sizes: targets, SECONDS)
        sent.result(SECONDS)


@pytest.mark.parametrize("direction", ["to the node", "to the client"])
def test_from_one_device_to_another(tmp_path: Path, memory: gpumem.DeviceMemory, direction: str) -> None:
    other = gpumem.soft(64 << 20)
    with joined(tmp_path, other, memory) as (client, node):
        ends = [(client, other), (node, memory)]
        (sender, source), (receiver, sink) = ends if direction == "to the node" else reversed(ends)
        for size in SIZES:
            data = data_of(size)
            target = sink.allocate(size)
            transfer(sender, receiver, [filled(source, data)], [target])
            assert target.read() == data
        assert bool(receiver.counters()["packets_split"]) == sink.splits


def test_host_and_device_in_one_message(tmp_path: Path, memory: gpumem.DeviceMemory) -> None:
    sizes = (100, 200_000, 70_000, 3, 1 << 20)
    datas = [data_of(size) for size in sizes]
    with joined(tmp_path, memory, None) as (client, node):
        buffers = [filled(memory, data) if at % 2 else data for at, data in enumerate(datas)]
        host = [memoryview(bytearray(size)) for size in sizes]
        transfer(client, node, buffers, host)
        assert host == datas
        back: list[Target] = [
            memory.allocate(size) if at % 2 else memoryview(bytearray(size)) for at, size in enumerate(sizes)
        ]
        transfer(node, client, host, back)
        assert [each.read() if isinstance(each, gpumem.DeviceBuffer) else bytes(each) for each in back] == datas


def test_what_comes_before_it_is_asked_for(tmp_path: Path, memory: gpumem.DeviceMemory) -> None:
    """It waits in the host's ring, and goes to the device from there."""
    data = data_of(1 << 20)
    with joined(tmp_path, None, memory) as (client, node):
        for size in (10, 60_000):
            client.send(header([size]), [data[:size]])
        sender = ThreadPoolExecutor(1)
        sent = sender.submit(client.send, header([len(data)]), [data])
        while node.counters()["packets_received"] < len(data) // 8192:
            assert not sent.done() or sent.result() is None
        for size in (10, 60_000, len(data)):
            target = memory.allocate(size)
            node.receive(lambda header, sizes, target=target: [target], SECONDS)
            assert target.read() == data[:size]
        sent.result(SECONDS)
        sender.shutdown()


def test_parts_of_a_buffer(tmp_path: Path, memory: gpumem.DeviceMemory) -> None:
    data = data_of(300_000)
    buffer = filled(memory, bytes(len(data)))
    with joined(tmp_path, None, memory) as (client, node):
        transfer(client, node, [data[1000:200_000]], [buffer.part(1000, 199_000)])
        assert buffer.read() == bytes(1000) + data[1000:200_000] + bytes(100_000)
        with pytest.raises(IndexError):
            buffer.part(1, len(buffer))


@pytest.mark.parametrize("kind", DEVICES)
def test_memory_comes_back(tmp_path: Path, kind: str) -> None:
    """And with it its registration, though a peer that left had not taken what was sent."""
    memory = gpumem.soft(64 << 20, **DEVICES[kind])
    with joined(tmp_path, memory, None) as (client, node):
        registered = _native.registrations()["regions"]
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(client.send, header([32 << 20]), [memory.allocate(32 << 20)])
            node.receive(lambda header, sizes: [memoryview(bytearray(size)) for size in sizes], SECONDS)
            sent.result(SECONDS)
            sent = pool.submit(client.send, header([32 << 20]), [memory.allocate(32 << 20)])
            node.close()
            with suppress(ConnectionLost):  # unless it was all taken, or dropped, before that was known
                sent.result(SECONDS)
        del sent
        assert len(memory.allocate(40 << 20)) == 40 << 20
        assert _native.registrations()["regions"] == registered


def test_one_region_is_registered_once(tmp_path: Path) -> None:
    memory = gpumem.soft()
    with joined(tmp_path, memory, None) as (client, node):
        before = _native.registrations()
        buffer = filled(memory, data_of(1 << 20))
        for _ in range(5):
            transfer(client, node, [buffer], [memoryview(bytearray(1 << 20))])
        after = _native.registrations()
        assert after["made"] - before["made"] == 1
        assert after["found"] - before["found"] == 4
        del buffer
        assert _native.registrations()["regions"] == before["regions"]


def test_memory_of_another_device_is_refused(tmp_path: Path, memory: gpumem.DeviceMemory) -> None:
    """The connection goes on."""
    other = gpumem.soft(1 << 20)
    with joined(tmp_path, None, memory) as (client, node):
        client.send(header([5]), [b"first"])
        with pytest.raises(GenieError, match="do not go to memory of"):
            node.receive(lambda header, sizes: [other.allocate(5)], SECONDS)
        target = memory.allocate(6)
        client.send(header([6]), [b"second"])
        node.receive(lambda header, sizes: [target], SECONDS)
        assert target.read() == b"second"


def test_no_memory_left(memory: gpumem.DeviceMemory) -> None:
    with pytest.raises(BackendUnavailable, match="268435456 bytes in all"):
        memory.allocate(257 << 20)
    held = memory.allocate(1)
    with pytest.raises(BackendUnavailable, match="no memory left"):
        memory.allocate(256 << 20)
    held.write(b"x")
    assert held.read() == b"x"
    with pytest.raises(BackendUnavailable):
        memory.allocate(0)
