"""Uploads by content: a digest is offered first, and sent is only what the node lacks."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import blake3

from genie.errors import DeadlineExceeded, NodeError, ProtocolError
from genie.graph import TensorSpec
from genie.remote.client.conversation import Conversation, Stream
from genie.wire import Kind, messages

CHUNK = 4 << 20
_MANY_THREADS = 1 << 20  # bytes from which hashing in several threads pays

# Where an answer takes long, offers do not wait for each other; copies keep their data meanwhile.
_SLOW_SECONDS = 1e-3
_AHEAD_BYTES = 32 << 20
_AHEAD_OFFERS = 64


@attrs.frozen
class _Offer:
    seq: int
    digest: bytes
    handle: int
    spec: TensorSpec
    data: memoryview


class Offers:
    """The offers of one conversation. ``upload`` sends a value as it is.

    Before anything may rely on the values, :meth:`settle` must have been called.
    """

    def __init__(self, conversation: Conversation, upload: Callable[[int, TensorSpec, memoryview], None]) -> None:
        self.offered = 0
        self.known = 0  # contents the node had
        self._conversation = conversation
        self._upload = upload
        self._open: list[_Offer] = []  # oldest first
        self._doubted: list[_Offer] = []  # sent, and some of it was there before: somebody's earlier upload
        self._astray = False  # an interrupt may have swallowed an answer

    @property
    def unsettled(self) -> bool:
        return bool(self._open or self._doubted)

    def add(self, handle: int, spec: TensorSpec, data: memoryview) -> None:
        """``data`` has been taken when this returns."""
        size = len(data)
        threads = blake3.blake3.AUTO if size >= _MANY_THREADS else 1
        digest = blake3.blake3(data, max_threads=threads).digest()
        ahead = self._conversation.round_trip >= _SLOW_SECONDS and size <= _AHEAD_BYTES
        if not ahead or any(offer.digest == digest for offer in self._open):
            self.settle()
        if ahead:
            while len(self._open) >= _AHEAD_OFFERS or sum(len(each.data) for each in self._open) + size > _AHEAD_BYTES:
                self._settle_first()
            data = memoryview(bytes(data))
        stream = Stream()
        seq = self._conversation.post(Kind.UPLOAD_BEGIN, messages.put_chunk(digest, size))
        offer = _Offer(seq, digest, handle, spec, data)
        self.offered += 1
        if ahead:
            self._conversation.streams[seq] = stream  # other answers may be waited for before this one
            self._open += [offer]
        else:
            self._finish(offer)
            self._verify()

    def settle(self) -> None:
        """Every value offered so far is the node's, or on its way."""
        while self._open:
            self._settle_first()
        if self._doubted:
            self._verify()

    def _settle_first(self) -> None:
        offer, streams = self._open[0], self._conversation.streams
        if self._astray:
            # Later answers are not waited for: each value is sent as it is.
            self._send_whole(offer)
            self._astray = bool(self._open)
            streams.pop(offer.seq, None)
            return
        try:
            self._finish(offer)
            streams.pop(offer.seq, None)
        except DeadlineExceeded:
            raise
        except BaseException:
            self._astray = self._open != []
            raise

    def _send_whole(self, offer: _Offer) -> None:
        """The first of the open ones, if it is one. Interrupted after it was sent, it is open no more."""
        talk, interrupt = self._conversation, None
        bulks = talk.bulks
        try:
            self._upload(offer.handle, offer.spec, offer.data)
        except BaseException as error:
            if talk.bulks == bulks:
                raise
            interrupt = error
        self._open = self._open[1:]
        if interrupt is not None:
            raise interrupt

    def _finish(self, offer: _Offer) -> None:
        """Of the first of the open ones, which it is no more then, or of one that was never among them."""
        talk, size = self._conversation, len(offer.data)
        try:
            answer, _ = talk.answer(offer.seq, Kind.UPLOAD_BEGIN, Kind.HELD)
        except NodeError:
            if talk.ended is not None:
                raise
            held, direct = 0, True  # refused; as an upload its handle will say why
        else:
            held, direct = talk.read(messages.get_held, answer)
        if direct:
            self._send_whole(offer)
            return
        if held > size:
            talk.fail(ProtocolError(f"the node says it holds {held} bytes of {size}"))
        for offset in range(held, size, CHUNK):
            payload = messages.put_chunk(offer.digest, offset)
            talk.send_bulk(Kind.UPLOAD_CHUNK, payload, offer.data[offset : offset + CHUNK])
        # Other clients may have it as soon as it is committed: let that not wait. What follows is either all done or,
        # interrupted, nothing.
        commit = messages.put_commit(offer.digest, offer.handle, offer.spec)
        talk.queue(Kind.UPLOAD_COMMIT, commit)
        if held == size:
            self.known += 1
        elif held:
            self._doubted += [offer]
        self._open = self._open[1:]

    def _verify(self) -> None:
        """Only the whole proves whether the part that was there before was the right one."""
        talk = self._conversation
        while self._doubted:
            offer = self._doubted[0]
            try:
                talk.ask(Kind.DESCRIBE, messages.HANDLE.pack(offer.handle), Kind.SPEC)
            except ProtocolError:
                if talk.ended is not None:
                    raise
                talk.queue(Kind.FREE, messages.put_handles((offer.handle,)))
                self._upload(offer.handle, offer.spec, offer.data)
            self._doubted = self._doubted[1:]
