"""Large data beside TLS's records: sealed by AES-256-GCM a quarter of a megabyte at a time.

A record of TLS has 16 KiB at most, and Python's way to OpenSSL copies each of them three times: half of what a link
carries is lost on that. So once TLS has shown who is there, and both sides said by ALPN that they can, each tells the
other a secret *through TLS*, and what is large goes as sealed pieces between the records of the same socket::

    0xC5   4 bytes: length of the rest (big-endian)   ciphertext   16 bytes: tag

The key is HKDF-SHA-256 (RFC 5869) of the sender's secret. The nonce is the piece's position in everything the sender
has said, TLS's part counted: no nonce comes twice, and a piece that is left out, repeated, or moved, also to before or
behind a record, does not open. What TLS carries it orders itself. After 256 GiB comes the next key, as RFC 8446, 5.5
wants for AES-GCM.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from genie.errors import TlsFailed

SECRET = 32  # bytes
SEALED_FROM = 1 << 16  # bytes: less goes as TLS's records
PIECE = 1 << 18  # bytes, at most, of one piece; two of them and what they carry besides stay in a core's cache
MARK = 0xC5  # no record of TLS begins so
HEAD = 5
TAG = 16

_PER_KEY = 1 << 38  # bytes


class _Direction:
    """One side's secret, and how much it has said: ``position`` counts what TLS carried, too."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._keys = -1  # which key is in use
        self._cipher: AESGCM | None = None
        self.position = 0

    def _at(self) -> tuple[AESGCM, bytes]:
        """The cipher and the nonce for the piece that begins here."""
        keys = self.position // _PER_KEY
        if self._cipher is None or keys != self._keys:
            info = b"genie sealed data " + keys.to_bytes(8, "big")
            derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(self._secret)
            self._cipher, self._keys = AESGCM(derived), keys
        return self._cipher, self.position.to_bytes(12, "big")


class Sealer(_Direction):
    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)
        self._room = memoryview(b"")

    def seal(self, data: memoryview) -> Iterator[memoryview]:
        """Pieces to be sent, each before the next is asked for."""
        if not self._room:
            self._room = memoryview(bytearray(HEAD + PIECE + TAG))
        for start in range(0, len(data), PIECE):
            plain = data[start : start + PIECE]
            length = len(plain) + TAG
            cipher, nonce = self._at()
            whole = self._room[: HEAD + length]
            whole[0] = MARK
            whole[1:HEAD] = length.to_bytes(4, "big")
            cipher.encrypt_into(nonce, plain, None, whole[HEAD:])
            self.position += len(plain)
            yield whole


class Opener(_Direction):
    def open(self, sealed: memoryview, out: memoryview) -> None:
        """``sealed`` is ciphertext and tag, ``out`` as long as the ciphertext. Raises :class:`TlsFailed` for what the
        peer did not send here."""
        cipher, nonce = self._at()
        try:
            cipher.decrypt_into(nonce, sealed, None, out)
        except InvalidTag:
            raise TlsFailed("what came was altered on the way") from None
        self.position += len(out)


class Arrived:
    """Bytes as they came, until they are used: whole records of TLS, and sealed pieces where those are agreed on."""

    def __init__(self, size: int) -> None:
        self._memory = memoryview(bytearray(size))
        self._start = 0
        self._end = 0

    @property
    def pending(self) -> bool:
        return self._end > self._start

    def grow(self, size: int) -> None:
        memory = memoryview(bytearray(size))
        held = self._end - self._start
        memory[:held] = self._memory[self._start : self._end]
        self._memory, self._start, self._end = memory, 0, held

    def space(self) -> memoryview:
        """Where to read to next: no further than a piece that has begun, so that none has to be moved to be whole."""
        held = self._end - self._start
        wanted = max(self._length() - held, 0) if held and self._memory[self._start] == MARK else 0
        if self._start and self._end + max(wanted, HEAD) > len(self._memory):
            self._memory[:held] = self._memory[self._start : self._end]
            self._start, self._end = 0, held
        return self._memory[self._end : self._end + wanted if wanted else None]

    def came(self, count: int) -> None:
        self._end += count

    def drop(self, count: int) -> None:
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0

    def records(self, sealed: bool) -> memoryview:
        """The whole records of TLS that are next; not :meth:`drop`\\ ped yet. What looks like nothing known passes for
        one: OpenSSL says what it thinks of it."""
        at = self._start
        while self._end > at:
            first = self._memory[at]
            # Behind the last record of the handshake a piece may be next, though nobody has said so yet.
            if first == MARK and (sealed or at > self._start):
                break
            if not _FIRST <= first <= _LAST:
                return self._memory[self._start : self._end]
            if self._end - at < HEAD:
                break
            length = HEAD + int.from_bytes(self._memory[at + 3 : at + HEAD], "big")
            if length > _LONGEST:
                return self._memory[self._start : self._end]
            if self._end - at < length:
                break
            at += length
        return self._memory[self._start : at]

    def piece(self) -> memoryview | None:
        """Ciphertext and tag, if a whole sealed piece is next."""
        if not self.pending or self._memory[self._start] != MARK or self._end - self._start < HEAD:
            return None
        length = self._length()
        if self._end - self._start < length:
            return None
        return self._memory[self._start + HEAD : self._start + length]

    def _length(self) -> int:
        """Of the sealed piece that is next, as far as that is known."""
        if self._end - self._start < HEAD:
            return HEAD
        length = int.from_bytes(self._memory[self._start + 1 : self._start + HEAD], "big")
        if not TAG < length <= PIECE + TAG:
            raise TlsFailed("what came was altered on the way: a sealed piece of an impossible length")
        return HEAD + length


_FIRST, _LAST = 20, 24  # the kinds of TLS's records
_LONGEST = HEAD + (1 << 14) + 256  # of them
