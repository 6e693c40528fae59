"""Messages over one reliable stream of packets: headers through its ring, buffers where they will stay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from genie.errors import BackendError, ConnectionLost, DeadlineExceeded, LocalProtocolError, Stage
from genie.wire import Buffer, Limits, Message, frames
from genie_backend_dpdk import _native
from genie_backend_dpdk.gpumem import DeviceBuffer
from genie_backend_dpdk.interface import Wire

Target: TypeAlias = memoryview | DeviceBuffer
Allocate: TypeAlias = Callable[[bytes, Sequence[int]], Sequence[Target]]


class DpdkConnection:
    """See :class:`genie.interfaces.Connection`; also ``Resumable``, ``Watched``, ``Keyed``, ``Labelled`` and ``Bound``.
    ``peer`` is the other side's address. Timeouts are times of no progress: a long transfer that moves is not late.
    Buffers may lie in the memory of a device that the transport was made with."""

    transport = "dpdk"

    def __init__(
        self, stream: _native.Stream, peer: str, limits: Limits, stall_timeout: float, wire: Wire | None
    ) -> None:
        self.peer = peer
        self._wire = wire  # whoever asks for the interface while this lives is to get the same device
        self._stream = stream
        self._limits = limits
        self._stall = stall_timeout
        self._prefix = b""  # of the next message, whose rest has not come yet

    def send(self, header: Buffer, buffers: Sequence[Buffer | DeviceBuffer] = ()) -> None:
        """Small messages are taken, and sent while the caller goes on; of larger ones no copy is made, and the peer has
        them when the call returns."""
        try:
            self._stream.send((header, *buffers), self._stall)
        except _native.Late as error:
            raise DeadlineExceeded(
                f"the peer took nothing for {self._stall:g} s",
                stage=Stage.SEND,
                seconds=self._stall,
                where=self.peer,
                hint=_LATE,
            ) from error
        except (_native.Ended, _native.Forked) as error:
            raise self._ended() from error

    @property
    def begun(self) -> int:
        return self._stream.begun

    @property
    def session(self) -> int:
        """See :class:`genie.ways.Bound`."""
        return self._stream.session

    def finish(self) -> None:
        """What ``send`` took goes out by itself, interrupted or not."""

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        """As :class:`genie.interfaces.Connection` says; without ``timeout`` a silent peer is waited for as long as it
        lives, one that falls silent within a message for the stall timeout."""
        within = self._stall if timeout is None else timeout
        midway = False
        try:
            self._stream.skipped(within)
            header = self._header(timeout, within)
            if not (header[12] or header[13]):
                return Message(header)
            sizes = frames.sizes(header, self._limits)
            targets = self._targets(allocate, header, sizes)
            midway = True
            for done, target in enumerate(targets):
                if len(target):
                    self._fill(target, sum(sizes[done + 1 :]), within)
            # Of a device's are only those that this caller's own `allocate` gave.
            return Message(header, cast("Sequence[memoryview]", targets))
        except _native.Late as error:
            late = DeadlineExceeded(
                f"the peer sent nothing for {within:g} s",
                stage=Stage.RECEIVE,
                seconds=within,
                where=self.peer,
                hint=_LATE,
            )
            late.midway = midway
            raise late from error
        except (_native.Ended, _native.Forked) as error:
            raise self._ended() from error

    def _header(self, timeout: float | None, within: float) -> bytes:
        if not self._prefix:
            self._prefix = self._stream.take(frames.PREFIX.size, timeout)
        length = frames.header_length(self._prefix, self._limits)
        rest = self._stream.take(length - frames.PREFIX.size, within)
        header, self._prefix = self._prefix + rest, b""
        return header

    def _targets(self, allocate: Allocate, header: bytes, sizes: Sequence[int]) -> list[Target]:
        try:
            targets = [self._target(target) for target in allocate(header, sizes)]
            if tuple(map(len, targets)) != tuple(sizes):
                raise LocalProtocolError(f"memory of {list(map(len, targets))} bytes for buffers of {tuple(sizes)}")
        except BaseException:
            self._stream.skip(sum(sizes))
            raise
        return targets

    def _target(self, given: Target) -> Target:
        if not isinstance(given, DeviceBuffer):
            target = memoryview(given).cast("B")
            if target.readonly:
                raise LocalProtocolError("memory to receive into can't be written", where=self.peer)
            return target
        if not self._stream.fills(given):
            raise LocalProtocolError("packets of this connection do not go to memory of that device", where=self.peer)
        return given

    def _fill(self, target: Target, behind: int, within: float) -> None:
        """``behind`` bytes of the message come after; when it is given up, they are dropped like the rest of this."""
        try:
            self._stream.fill(target, within)
        except BaseException:
            if behind:
                self._stream.skip(behind)
            raise

    def keyed(self, key: bytes) -> None:
        self._stream.key(key)

    def hung_up(self) -> bool:
        """See :class:`genie.interfaces.Watched`."""
        return _native.forked() or self._stream.hung_up()

    def fileno(self) -> int:
        """For an event loop: readable while there is something to receive, or the end of it. Not for reading."""
        return self._stream.fileno()

    def counters(self) -> dict[str, int]:
        """Packets: sent, received, dropped, sent again, split (the payload came into a device's memory); timeouts."""
        return self._stream.counters()

    def close(self) -> None:
        """From any thread; one that waits in ``receive`` is woken. What was sent before is still delivered."""
        with contextlib.suppress(_native.Forked):  # it is the parent's to close
            self._stream.close()

    def _ended(self) -> BackendError:
        return ConnectionLost(_ENDS.get(self._stream.end, "the connection broke"), where=self.peer, hint=_LOST)


_LOST = "see the node's log; a node that was killed must be started again with `genie serve`"
_LATE = "the node may be overloaded or cut off; `genie node status` asks it"
_ENDS = {
    "here": "this side closed the connection",
    "peer": "the peer closed the connection",
    "reset": "the peer gave the connection up",
    "silent": "the peer is gone, or the way to it",
    "forked": "this process was forked from the one whose connection it is",
    "lingered": "the peer did not take what was left",
    "device": "the device whose memory the buffers are in does not copy",
}
