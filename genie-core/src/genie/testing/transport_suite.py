"""What every transport must do. Subclass, give ``transport`` and ``address``, and run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from genie.errors import BackendError, BackendUnavailable, ConnectionLost, DeadlineExceeded, GenieError
from genie.interfaces import Connection, Listener, Message, Transport, Watched
from genie.wire import Kind, frames

_SECONDS = 10.0


def _header(seq: int, sizes: Sequence[int] = (), payload: bytes = b"") -> bytes:
    return frames.message(seq, 1, frames.record(Kind.UPLOAD, payload), sizes)


def _fresh(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def _pattern(size: int) -> bytes:
    block = bytes(range(251))
    return (block * (size // len(block) + 1))[:size]


class TransportSuite:
    """Fixtures to give: ``transport``; and ``address``, one to listen at that is free whenever it is asked for."""

    @pytest.fixture
    def transport(self) -> Transport:
        raise pytest.UsageError("a TransportSuite needs the fixture `transport`")

    @pytest.fixture
    def address(self) -> str:
        raise pytest.UsageError("a TransportSuite needs the fixture `address`")

    @pytest.fixture
    def listener(self, transport: Transport, address: str) -> Iterator[Listener]:
        listener = transport.listen(address)
        yield listener
        listener.close()

    @pytest.fixture
    def pair(self, transport: Transport, listener: Listener) -> Iterator[tuple[Connection, Connection]]:
        with ThreadPoolExecutor(1) as pool:
            accepted = pool.submit(listener.accept, _SECONDS)
            client = transport.connect(listener.address, _SECONDS)
            node = accepted.result(_SECONDS)
        yield client, node
        client.close()
        node.close()

    def test_has_a_name(self, transport: Transport) -> None:
        assert transport.name

    @pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_001])
    def test_a_message_arrives_as_it_was_sent(self, pair: tuple[Connection, Connection], size: int) -> None:
        client, node = pair
        data, header = _pattern(size), _header(7, (size,), b"meta")
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(client.send, header, (data,))
            message = node.receive(_fresh, _SECONDS)
            sent.result(_SECONDS)
        assert bytes(message.header) == header
        assert [bytes(buffer) for buffer in message.buffers] == [data]

    def test_a_header_alone(self, pair: tuple[Connection, Connection]) -> None:
        client, node = pair
        header = _header(1, (), _pattern(200_000))
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(client.send, header)
            message = node.receive(_fresh, _SECONDS)
            sent.result(_SECONDS)
        assert bytes(message.header) == header
        assert not message.buffers

    def test_messages_keep_their_order_both_ways(self, pair: tuple[Connection, Connection]) -> None:
        client, node = pair
        for seq in range(200):
            client.send(_header(seq, (seq,)), (_pattern(seq),))
        node.send(_header(1000))
        for seq in range(200):
            message = node.receive(_fresh, _SECONDS)
            assert frames.sequence(message.header) == seq
            assert bytes(message.buffers[0]) == _pattern(seq)
        assert frames.sequence(client.receive(_fresh, _SECONDS).header) == 1000

    def test_data_lands_in_the_memory_given(self, pair: tuple[Connection, Connection]) -> None:
        client, node = pair
        memory = bytearray(300_000)
        seen: list[tuple[int, ...]] = []

        def allocate(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
            seen.append(tuple(sizes))
            return [memoryview(memory)[50_000:250_000]]

        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(client.send, _header(0, (200_000,)), (_pattern(200_000),))
            node.receive(allocate, _SECONDS)
            sent.result(_SECONDS)
        assert seen == [(200_000,)]
        assert memory == bytes(50_000) + _pattern(200_000) + bytes(50_000)

    def test_buffers_may_be_reused_once_sent(self, pair: tuple[Connection, Connection]) -> None:
        client, node = pair
        data = bytearray(b"first")
        client.send(_header(0, (5,)), (data,))
        data[:] = b"later"
        assert bytes(node.receive(_fresh, _SECONDS).buffers[0]) == b"first"

    @pytest.mark.parametrize("size", [10, 3_000_000])
    def test_a_refused_message_is_skipped(self, pair: tuple[Connection, Connection], size: int) -> None:
        client, node = pair

        class Refused(Exception):
            pass

        def refuse(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
            raise Refused

        def send() -> None:
            client.send(_header(0, (size,)), (_pattern(size),))
            client.send(_header(1, (3,)), (b"abc",))

        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(send)
            with pytest.raises(Refused):
                node.receive(refuse, _SECONDS)
            message = node.receive(_fresh, _SECONDS)
            sent.result(_SECONDS)
        assert frames.sequence(message.header) == 1
        assert bytes(message.buffers[0]) == b"abc"

    def test_waiting_ends_at_the_deadline(self, pair: tuple[Connection, Connection]) -> None:
        _, node = pair
        with pytest.raises(DeadlineExceeded):
            node.receive(_fresh, 0.05)

    def test_a_deadline_leaves_the_connection_usable(self, pair: tuple[Connection, Connection]) -> None:
        client, node = pair
        with pytest.raises(DeadlineExceeded):
            node.receive(_fresh, 0.05)
        client.send(_header(5))
        assert frames.sequence(node.receive(_fresh, _SECONDS).header) == 5

    def test_what_was_sent_before_closing_arrives(self, pair: tuple[Connection, Connection]) -> None:
        client, node = pair
        client.send(_header(3))
        client.close()
        assert frames.sequence(node.receive(_fresh, _SECONDS).header) == 3
        with pytest.raises(ConnectionLost):
            node.receive(_fresh, _SECONDS)

    def test_a_peer_that_closed_is_noticed_without_reading(self, pair: tuple[Connection, Connection]) -> None:
        client, node = pair
        if not isinstance(node, Watched):
            pytest.skip("the transport's connections can't tell")
        assert not node.hung_up()
        client.send(_header(1))
        assert not node.hung_up()
        client.close()
        deadline = time.monotonic() + _SECONDS
        while not node.hung_up():
            assert time.monotonic() < deadline
        assert node.receive(_fresh, _SECONDS).header == _header(1)

    def test_a_peer_that_left_much_behind_is_noticed_too(self, pair: tuple[Connection, Connection]) -> None:
        client, node = pair
        if not isinstance(node, Watched):
            pytest.skip("the transport's connections can't tell")
        data, count = _pattern(1 << 20), 6

        def leave() -> None:
            for number in range(count):
                client.send(_header(number + 1, [len(data)]), [data])
            client.close()

        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(leave)
            deadline = time.monotonic() + _SECONDS
            while not node.hung_up():
                assert time.monotonic() < deadline
            left.result(_SECONDS)
        for number in range(count):
            message = node.receive(_fresh, _SECONDS)
            assert frames.sequence(message.header) == number + 1
            assert bytes(message.buffers[0]) == data
        with pytest.raises(ConnectionLost):
            node.receive(_fresh, _SECONDS)

    def test_closing_wakes_a_waiting_receiver(self, pair: tuple[Connection, Connection]) -> None:
        _, node = pair
        waiting = threading.Event()

        def wait() -> Message:
            waiting.set()
            return node.receive(_fresh, _SECONDS)

        with ThreadPoolExecutor(1) as pool:
            received = pool.submit(wait)
            waiting.wait(_SECONDS)
            node.close()
            with pytest.raises(ConnectionLost):
                received.result(_SECONDS)

    def test_sending_to_a_closed_peer_fails(self, pair: tuple[Connection, Connection]) -> None:
        client, node = pair
        node.close()

        def send() -> None:
            for seq in range(1000):  # the first may vanish into buffers
                client.send(_header(seq, (1 << 16,)), (bytes(1 << 16),))

        with pytest.raises(BackendError):
            send()

    def test_nobody_there(self, transport: Transport, address: str) -> None:
        listener = transport.listen(address)
        gone = listener.address
        listener.close()
        with pytest.raises(BackendUnavailable) as caught:
            transport.connect(gone, 2.0)
        assert gone in str(caught.value)
        assert caught.value.hint

    def test_an_address_is_taken_once(self, transport: Transport, listener: Listener) -> None:
        with pytest.raises(GenieError) as caught:
            transport.listen(listener.address)
        assert listener.address in str(caught.value)

    def test_accepting_ends_at_the_deadline(self, listener: Listener) -> None:
        with pytest.raises(DeadlineExceeded):
            listener.accept(0.05)

    def test_closing_wakes_a_waiting_listener(self, transport: Transport, address: str) -> None:
        listener = transport.listen(address)
        waiting = threading.Event()

        def wait() -> Connection:
            waiting.set()
            return listener.accept(_SECONDS)

        with ThreadPoolExecutor(1) as pool:
            accepted = pool.submit(wait)
            waiting.wait(_SECONDS)
            listener.close()
            with pytest.raises(ConnectionLost):
                accepted.result(_SECONDS)

    def test_many_connections(self, transport: Transport, listener: Listener) -> None:
        links: list[tuple[Connection, Connection]] = []
        for _ in range(20):
            with ThreadPoolExecutor(1) as pool:  # connecting may take both sides
                accepted = pool.submit(listener.accept, _SECONDS)
                client = transport.connect(listener.address, _SECONDS)
                links.append((client, accepted.result(_SECONDS)))
        for number, (client, _) in enumerate(links):
            client.send(_header(number))
        assert [frames.sequence(node.receive(_fresh, _SECONDS).header) for _, node in links] == list(range(20))
        for client, node in links:
            client.close()
            node.close()
