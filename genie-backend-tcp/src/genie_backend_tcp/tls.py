"""Messages over TLS: the same sockets, reads and waits, with an ``SSLObject`` between them and the messages.

OpenSSL never touches the socket. So the kernel's own timeouts and the polling of :class:`SocketConnection` hold as they
are, many records go out with one system call and come in with one, and no lock is held while anybody waits. What is
large is not for OpenSSL's records: see :mod:`genie_backend_tcp.sealing`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from typing import cast

from genie.errors import AccessDenied, ConnectionLost, DeadlineExceeded, GenieError, ProtocolError, Stage, TlsFailed
from genie.security.revoked import fingerprint
from genie.security.tls import DATA_PLANE, common_name, explain
from genie.wire import Allocate, Buffer, Limits, Message, frames
from genie_backend_tcp import sealing
from genie_backend_tcp.connection import LATE, SocketConnection
from genie_backend_tcp.progress import Progress
from genie_backend_tcp.sealing import Arrived, Opener, Sealer

_RECORD = 1 << 14  # what TLS encrypts at a time
_BATCH = 1 << 18  # bytes encrypted before they are sent
_READ = 2 * (sealing.HEAD + sealing.PIECE + sealing.TAG) + (1 << 12)  # bytes read at a time
_READ_FIRST = 1 << 15  # more once it is known who is there
_HANDSHAKE = 0x16  # what the first byte of TLS says
_HANDSHAKE_SECONDS = 10.0
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 1 << 16


class TlsConnection(SocketConnection):
    """One socket that speaks TLS. ``host`` is whom to expect there; without, we are the server."""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        limits: Limits,
        stall_timeout: float,
        spin_us: float,
        context: ssl.SSLContext,
        host: str | None = None,
    ) -> None:
        super().__init__(sock, peer, limits, stall_timeout, spin_us)
        self.subject = self.fingerprint = ""
        self._sent = Progress(Stage.SEND, peer)  # of the message that is being sent
        self._is_client = host is not None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._crypto = threading.Lock()  # OpenSSL's objects are for one thread at a time
        self._sending = threading.Lock()  # records must leave in the order they were encrypted
        self._arrived = Arrived(_READ_FIRST)
        self._sealer: Sealer | None = None  # if both sides can
        self._own_secret = b""  # until it is told: not before there is something to send, as it might never be read
        self._secret = bytearray()  # the peer's, as far as it came
        self._opener: Opener | None = None
        self._rest = memoryview(b"")  # of a piece for which there was no space
        self._shaken = False
        self._settled = threading.Event()  # the handshake is over, this way or that
        self._failure: GenieError | None = None
        self._heard = False  # anything at all
        self._over = False  # the peer said that nothing follows
        self._torn = False  # received bytes may be on their way from here to there: an interrupt now loses them
        self._plain = False  # who came does not speak TLS, and may be told so

    # --- the handshake ------------------------------------------------------------------------------

    def shake_hands(self, timeout: float) -> None:
        """Raises :class:`TlsFailed`, or what a broken or silent connection raises."""
        try:
            self._shake_hands(time.monotonic() + timeout)
        except GenieError as error:
            self._failure = error
            raise
        finally:
            self._settled.set()

    def begin(self) -> None:
        """Shake hands in a thread of its own: an accepting thread waits for nobody. Who sends or receives learns what
        came of it."""

        def run() -> None:
            with contextlib.suppress(GenieError):
                self.shake_hands(min(self._stall, _HANDSHAKE_SECONDS))

        threading.Thread(target=run, name="genie-handshake", daemon=True).start()

    def _wait_for_handshake(self, timeout: float) -> None:
        if not self._settled.wait(timeout):
            raise DeadlineExceeded(f"no TLS handshake within {timeout:g} s", stage=Stage.TLS, where=self.peer)
        if self._failure is not None:
            raise self._failure

    def _shake_hands(self, deadline: float) -> None:
        try:
            while self._unfinished():
                self._flush()
                self._read_handshake(deadline)
            if self._tls.selected_alpn_protocol() == DATA_PLANE:
                self._own_secret = os.urandom(sealing.SECRET)
                self._sealer = Sealer(self._own_secret)
            self._flush()
            self.subject = common_name(self._tls.getpeercert())
            self.fingerprint = fingerprint(self._tls.getpeercert(binary_form=True))
            self._arrived.grow(_READ)
            self._shaken = True
        except ssl.SSLError as error:
            self._linger()
            raise explain(error, self.peer, client=self._is_client) from error
        except OSError as error:
            if isinstance(error, GenieError):
                raise
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise self._unanswered() from error
            raise self._translated(error, "sent", self._receive_timeout) from error

    def _unanswered(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            "the peer did not finish the TLS handshake in time", stage=Stage.TLS, where=self.peer, hint=LATE
        )

    def _unfinished(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return True
        return False

    def _read_handshake(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._unanswered()
        self._set_receive_timeout(left)
        space = self._arrived.space()
        count = self._sock.recv_into(space)
        if not count:
            raise ConnectionLost("the peer closed the connection during the TLS handshake", where=self.peer)
        first, magic = space[: min(count, len(frames.MAGIC))], frames.MAGIC
        if not self._is_client and not self._heard and first == magic[: len(first)]:
            self._plain = True
            raise AccessDenied(
                "this node speaks TLS alone, and the client came without",
                hint="set `ca` to the certificate of the authority that the node's is from",
            )
        if not self._is_client and not self._heard and first[0] != _HANDSHAKE:
            raise ProtocolError("who came speaks neither TLS nor Genie's protocol", where=self.peer)
        self._heard = True
        self._arrived.came(count)
        self._feed()

    def _feed(self) -> bool:
        """Give OpenSSL the records that are next. Whether there were any."""
        records = self._arrived.records(sealed=self._sealer is not None)
        if not records:
            return False
        self._torn = True
        with self._crypto:
            self._incoming.write(records)
        self._arrived.drop(len(records))
        self._torn = False
        return True

    def _flush(self) -> None:
        with self._sending:
            with self._crypto:
                data = self._outgoing.read()
            if data:
                self._write(data)

    def _linger(self) -> None:
        """Say why, and let the peer hear it: closing with bytes unread would reset the connection, and the last words
        be lost."""
        try:
            self._flush()
            self._sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + _LINGER_SECONDS
            read = 0
            while read < _LINGER_BYTES and (left := deadline - time.monotonic()) > 0:
                self._set_receive_timeout(left)
                count = len(self._sock.recv(_RECORD))
                if not count:
                    break
                read += count
        except OSError:
            return

    # --- out ----------------------------------------------------------------------------------------

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        try:
            if self._plain:
                self._plain = False
                self._write(header)
                self._linger()
                return
            if not self._shaken:
                self._wait_for_handshake(self._stall)
            self._send_parts([memoryview(part).cast("B") for part in (header, *buffers) if len(part)])
        except ssl.SSLError as error:
            raise explain(error, self.peer, client=self._is_client) from error
        except OSError as error:
            if isinstance(error, GenieError):
                raise
            raise self._translated(error, "took", self._stall) from error

    def _send_parts(self, parts: list[memoryview]) -> None:
        with self._sending:
            self._sent = Progress(Stage.SEND, self.peer)
            if self._own_secret:
                with self._crypto:
                    self._tls.write(self._own_secret)
                self._own_secret = b""
            few: list[memoryview] = []
            for part in parts:
                if self._sealer is None or len(part) < sealing.SEALED_FROM:
                    few.append(part)
                    continue
                self._send_records(few)
                few.clear()
                for piece in self._sealer.seal(part):
                    self._write(piece)
            self._send_records(few)

    def _send_records(self, parts: list[memoryview]) -> None:
        for batch in _batches(parts):
            with self._crypto:
                for piece in batch:
                    self._tls.write(piece)
                data = self._outgoing.read()
            self._write(data)
            if self._sealer is not None:
                self._sealer.position += sum(map(len, batch))

    def _write(self, data: Buffer) -> None:
        view = memoryview(data)
        while len(view):
            self._sent.waits(self._stall)
            count = self._sock.send(view)
            self._sent.moved(count)
            view = view[count:]

    # --- in -----------------------------------------------------------------------------------------

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        if not self._shaken:
            started = time.monotonic()
            self._wait_for_handshake(self._stall if timeout is None else timeout)
            if timeout is not None:
                timeout = max(timeout - (time.monotonic() - started), 0.001)
        return super().receive(allocate, timeout)

    def hung_up(self) -> bool:
        # Until hands are shaken, another thread reads: what is read here would be missed there.
        return self._settled.is_set() and super().hung_up()

    @property
    def _midway(self) -> bool:
        return super()._midway or bool(self._incoming.pending) or self._arrived.pending or bool(self._rest)

    def _read(self, space: memoryview) -> int:
        if self._torn:
            raise ConnectionLost("receiving was interrupted", where=self.peer)
        try:
            while not (filled := self._decrypt(space) or self._open(space)) and not self._over:
                if self._feed():
                    continue
                count = super()._read(self._arrived.space())
                if not count:
                    return 0
                self._arrived.came(count)
        except ssl.SSLError as error:
            raise explain(error, self.peer, client=self._is_client) from error
        except TlsFailed as error:
            error.where = error.where or self.peer
            raise
        return filled

    def _open(self, space: memoryview) -> int:
        """Into ``space`` what came sealed, if that is next."""
        if self._rest:
            count = min(len(space), len(self._rest))
            space[:count], self._rest = self._rest[:count], self._rest[count:]
            return count
        if self._opener is None or (sealed := self._arrived.piece()) is None:
            return 0
        self._torn = True
        size = len(sealed) - sealing.TAG
        whole = space[:size] if size <= len(space) else memoryview(bytearray(size))
        self._opener.open(sealed, whole)
        self._arrived.drop(sealing.HEAD + len(sealed))
        if size > len(space):  # it is skipped, or its sender cuts messages elsewhere than we do
            space[:], self._rest = whole[: len(space)], whole[len(space) :]
        self._torn = False
        return min(size, len(space))

    def _decrypt(self, space: memoryview) -> int:
        """Into ``space`` what has come."""
        filled = 0
        self._torn = True
        with self._crypto:
            try:
                # Asking in vain would raise, and cost more than a small message does.
                while filled < len(space) and (self._incoming.pending or self._tls.pending()):
                    if self._sealer is not None and self._opener is None:
                        self._learn_secret()
                        continue
                    count = cast(int, self._tls.read(len(space) - filled, space[filled:]))
                    if not count:
                        self._over = True
                        break
                    filled += count
                    if self._opener is not None:
                        self._opener.position += count
            except ssl.SSLWantReadError:
                pass
        self._torn = False
        if self._outgoing.pending:  # what TLS itself owes the peer
            self._flush()
        return filled

    def _learn_secret(self) -> None:
        """The first that the peer says."""
        said = self._tls.read(sealing.SECRET - len(self._secret))
        if not said:
            raise ConnectionLost("the peer closed the connection after the TLS handshake", where=self.peer)
        self._secret += said
        if len(self._secret) == sealing.SECRET:
            self._opener = Opener(bytes(self._secret))


def _batches(parts: Sequence[memoryview]) -> Iterator[list[Buffer]]:
    """The parts as records, small ones together, in lists to be sent at once."""
    if sum(map(len, parts)) <= _RECORD:
        yield [b"".join(parts)]
        return
    batch: list[Buffer] = []
    size = 0
    small = bytearray()
    for part in parts:
        if len(small) + len(part) <= _RECORD:
            small += part
            continue
        if small:
            batch.append(small)
            size += len(small)
            small = bytearray()
        whole = len(part) - len(part) % _RECORD
        for start in range(0, whole, _RECORD):
            batch.append(part[start : start + _RECORD])
            size += _RECORD
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
        small += part[whole:]
    if small:
        batch.append(small)
    if batch:
        yield batch
