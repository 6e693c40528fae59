"""What the records of each kind carry, checked as it is read."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Annotated, Final, TypeVar

import msgspec

from genie.device import Device
from genie.errors import GenieError, LimitExceeded, ProtocolError
from genie.failures import Failure, error_of, failure_of
from genie.graph import DTYPES, TensorSpec
from genie.wire.frames import Buffer, Limits

_T = TypeVar("_T")

HANDLE: Final = struct.Struct("<Q")
_PAIR: Final = struct.Struct("<QQ")
_VALUE_HEAD: Final = struct.Struct("<QH")  # handle, bytes of the spec
_RESULT_HEAD: Final = struct.Struct("<H")  # bytes of the spec
_CHUNK: Final = struct.Struct("<32sQ")  # digest, offset or size
_HELD: Final = struct.Struct("<QB")

DIGEST_BYTES: Final = 32
ANY_SIZE: Final = (1 << 64) - 1
LARGEST_HANDLE: Final = (1 << 63) - 1
LONGEST_LEASE: Final = float(1 << 30)  # s: what a wait takes


class Back(msgspec.Struct, frozen=True, kw_only=True):
    """A client that comes back to its ``session``, proved by the ``key`` that WELCOME gave it.

    ``heard`` counts the node's messages that arrived whole, WELCOME not among them; ``sent`` is the number of the
    client's last message. ``probe``: it only asks how things are, over a connection of its own. ``cancel``, with
    ``probe``: what it asked up to the message ``sent`` need not be done any more.
    """

    session: str
    key: str
    heard: int
    sent: int
    probe: bool = False
    cancel: bool = False


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How things are with the session of a client that comes back, or asks.

    ``taken`` is the number of the client's last message that arrived whole, ``told`` how many messages the node has
    sent or has ready, ``again`` how many of those follow, ``busy`` whether it is at work on one or receives one.
    """

    taken: int
    told: int
    again: int = 0
    busy: bool = False


MOST_PASSED_OVER = 8
MOST_REASON = 240  # characters

PassedOver = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=32)], Annotated[str, msgspec.Meta(max_length=MOST_REASON)]],
    msgspec.Meta(max_length=MOST_PASSED_OVER),
]


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """``device`` is the device's number on the node; -1 asks for the welcome alone. A node that brings another one
    values names the ``channel`` instead, by the token that the other gave out for it.

    ``resumes``: this client comes back when its connection breaks. One that does says which ``back`` it is.

    A node that is full keeps a client that ``waits`` so many seconds in its queue. ``priority`` may be lower than the
    tenant's. ``passed_over``: the transports the client would rather have come by, and why it did not."""

    major: int
    minor: int
    genie: str = ""
    device: int = -1
    host: str = ""
    client: str = ""
    channel: str = ""
    resumes: bool = False
    back: Back | None = None
    waits: float = 0.0
    priority: str = ""
    passed_over: PassedOver = {}


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """WAIT, to who waits for a place: theirs in the queue, counted from 1, how many wait, and why there is no room."""

    position: int
    waiting: int = 0
    reason: str = ""


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """``local_address`` is a quicker way to the node for clients whose host identity equals ``host``. A node that wants
    ``tickets``, from its control plane, says nothing else of itself to who has none.

    A session whose connection broke is kept for ``lease`` seconds (0: not at all) for who has its ``key``, which is a
    secret.
    """

    major: int
    minor: int
    genie: str = ""
    session: str = ""
    devices: tuple[Device, ...] = ()
    limits: Limits = Limits()
    host: str = ""
    local_address: str = ""
    control_port: int = 0
    tickets: bool = False
    lease: float = 0.0
    key: str = ""
    standing: Standing | None = None


_encode = msgspec.msgpack.Encoder().encode
_spec_decoder = msgspec.msgpack.Decoder(TensorSpec)
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_waiting_decoder = msgspec.msgpack.Decoder(Waiting)
_welcome_decoder = msgspec.msgpack.Decoder(Welcome)
_failure_decoder = msgspec.msgpack.Decoder(Failure)
_counters_decoder = msgspec.msgpack.Decoder(dict[str, int])


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: Buffer, what: str) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the peer sent a malformed {what}: {error}") from error


def _unpack(layout: struct.Struct, data: memoryview, what: str) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise ProtocolError(f"a {what} record has {len(data)} bytes instead of {layout.size}")
    return layout.unpack(data)


def spec_bytes(spec: TensorSpec, limits: Limits) -> int:
    """Bytes of a contiguous value of this shape and dtype, once both are in bounds."""
    item = DTYPES.get(spec.dtype)
    if item is None:
        raise ProtocolError(f"unknown dtype {spec.dtype[:64]!r}")
    if len(spec.shape) > limits.rank:
        raise LimitExceeded(f"a tensor of rank {len(spec.shape)}; the limit is {limits.rank}")
    if any(not 0 <= size <= LARGEST_HANDLE for size in spec.shape):
        raise ProtocolError(f"a tensor with the impossible shape {spec.shape}")
    if spec.stride is not None and not (
        len(spec.stride) == len(spec.shape) and all(0 <= step <= LARGEST_HANDLE for step in spec.stride)
    ):
        raise ProtocolError(f"a tensor of shape {spec.shape} with the impossible strides {spec.stride}")
    size = math.prod(spec.shape) * item
    if size > limits.tensor:
        raise LimitExceeded(
            f"a tensor of {size} bytes (shape {tuple(spec.shape)}, {spec.dtype}); the limit is {limits.tensor} bytes",
            hint="split the tensor, or start the node on a device with more memory",
        )
    return size


# --- greeting and errors ---------------------------------------------------------------------------


def put_struct(value: Hello | Welcome | Waiting | TensorSpec | dict[str, int]) -> bytes:
    return _encode(value)


def get_hello(data: Buffer) -> Hello:
    hello = _decode(_hello_decoder, data, "HELLO")
    if hello.back is not None:
        _check_numbers("HELLO", hello.back.heard, hello.back.sent)
    return hello


def get_welcome(data: Buffer) -> Welcome:
    welcome = _decode(_welcome_decoder, data, "WELCOME")
    _check_numbers("WELCOME", *msgspec.structs.astuple(welcome.limits))
    if not 0 <= welcome.lease <= LONGEST_LEASE:  # nor what is no number
        raise ProtocolError(f"the peer sent a malformed WELCOME: a lease of {welcome.lease:g} s")
    if not 0 <= welcome.control_port < 1 << 16:
        raise ProtocolError(f"the peer sent a malformed WELCOME: there is no port {welcome.control_port}")
    if welcome.standing is not None:
        _check_numbers("WELCOME", welcome.standing.taken, welcome.standing.told, welcome.standing.again)
    return welcome


def _check_numbers(what: str, *numbers: int) -> None:
    for number in numbers:
        if not 0 <= number <= LARGEST_HANDLE:
            raise ProtocolError(f"the peer sent a malformed {what}: it counts {number}")


def get_waiting(data: Buffer) -> Waiting:
    return _decode(_waiting_decoder, data, "WAIT")


def get_counters(data: Buffer) -> dict[str, int]:
    return _decode(_counters_decoder, data, "COUNTERS")


def get_spec(data: Buffer) -> TensorSpec:
    return _decode(_spec_decoder, data, "tensor spec")


def put_error(error: BaseException) -> bytes:
    """Anything a node may raise."""
    return _encode(failure_of(error))


def get_error(data: Buffer, node: str) -> GenieError:
    """The error to raise here."""
    return error_of(_decode(_failure_decoder, data, "ERROR"), node)


# --- work ------------------------------------------------------------------------------------------


def put_varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def get_varint(data: Buffer) -> tuple[int, int]:
    """A number below 2**35 and the bytes it took."""
    if len(data) and data[0] < 0x80:
        return data[0], 1
    number = shift = 0
    for offset, byte in enumerate(data[:5]):
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, offset + 1
        shift += 7
    raise ProtocolError("a plan number is cut short or too large")


def put_value(handle: int, spec: TensorSpec, data: Buffer = b"") -> bytes:
    """UPLOAD: handle, spec, and the bytes unless they travel as the message's buffer."""
    packed = _encode(spec)
    return b"".join((_VALUE_HEAD.pack(handle, len(packed)), packed, data))


def get_value(data: memoryview) -> tuple[int, TensorSpec, memoryview]:
    if len(data) < _VALUE_HEAD.size:
        raise ProtocolError("an UPLOAD record is cut short")
    handle, length = _VALUE_HEAD.unpack_from(data)
    start = _VALUE_HEAD.size + length
    if start > len(data):
        raise ProtocolError("an UPLOAD record is cut short")
    return _handle(handle), get_spec(data[_VALUE_HEAD.size : start]), data[start:]


def put_result(spec: TensorSpec, data: Buffer = b"") -> bytes:
    """VALUE: spec, and the bytes unless they travel as the message's buffer."""
    packed = _encode(spec)
    return b"".join((_RESULT_HEAD.pack(len(packed)), packed, data))


def get_result(data: memoryview) -> tuple[bytes, memoryview]:
    """The spec as it was sent, for :func:`get_spec`, and the bytes in the record."""
    if len(data) < _RESULT_HEAD.size:
        raise ProtocolError("a VALUE record is cut short")
    start = _RESULT_HEAD.size + (data[0] | data[1] << 8)
    if start > len(data):
        raise ProtocolError("a VALUE record is cut short")
    return bytes(data[_RESULT_HEAD.size : start]), data[start:]


def put_chunk(digest: bytes, offset: int) -> bytes:
    """UPLOAD_CHUNK (offset of the message's buffer in the content) and UPLOAD_BEGIN (size of the content)."""
    return _CHUNK.pack(digest, offset)


def get_chunk(data: memoryview) -> tuple[bytes, int]:
    if len(data) != _CHUNK.size:
        raise ProtocolError(f"a content record has {len(data)} bytes instead of {_CHUNK.size}")
    digest, number = _CHUNK.unpack(data)
    return digest, number


def put_commit(digest: bytes, handle: int, spec: TensorSpec) -> bytes:
    return digest + put_value(handle, spec)


def get_commit(data: memoryview) -> tuple[bytes, int, TensorSpec]:
    handle, spec, rest = get_value(data[DIGEST_BYTES:])
    if rest:
        raise ProtocolError(f"{len(rest)} bytes after an UPLOAD_COMMIT")
    return bytes(data[:DIGEST_BYTES]), handle, spec


def put_held(held: int, *, direct: bool) -> bytes:
    return _HELD.pack(held, direct)


def get_held(data: memoryview) -> tuple[int, bool]:
    held, direct = _unpack(_HELD, data, "HELD")
    return held, bool(direct)


def put_handles(handles: Iterable[int]) -> bytes:
    """FREE: each handle's difference from the one before it (the first's from 0), as a zigzag varint.

    What is freed together was mostly made together: most handles take one byte.
    """
    out = bytearray()
    last = 0
    for handle in handles:
        step, last = handle - last, handle
        step = step << 1 if step >= 0 else ~(step << 1)
        while step > 0x7F:
            out.append(step & 0x7F | 0x80)
            step >>= 7
        out.append(step)
    return bytes(out)


def get_handles(data: memoryview) -> list[int]:
    handles: list[int] = []
    last = number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        if byte > 0x7F:
            shift += 7
            if shift > 63:
                raise ProtocolError("a FREE record has a number of more than 64 bits")
            continue
        last = _handle(last + ((number >> 1) ^ -(number & 1)))
        handles.append(last)
        number = shift = 0
    if shift:
        raise ProtocolError("a FREE record is cut short")
    return handles


def put_pair(first: int, second: int) -> bytes:
    """FETCH (handle, size or ``ANY_SIZE``) and SEED (generator, seed modulo 2**64)."""
    return _PAIR.pack(first, second & ANY_SIZE)


def get_pair(data: memoryview, what: str) -> tuple[int, int]:
    first, second = _unpack(_PAIR, data, what)
    return first, second


def get_fetch(data: memoryview) -> tuple[int, int]:
    """FETCH: the handle, and the size of the memory for its value or ``ANY_SIZE``."""
    handle, wanted = get_pair(data, "FETCH")
    return _handle(handle), wanted


def get_seed(data: memoryview) -> tuple[int, int]:
    """SEED: the generator's number, and the seed."""
    generator, seed = get_pair(data, "SEED")
    return _generator(generator), seed


def get_generator(data: memoryview, what: str) -> int:
    return _generator(get_number(data, what))


def _generator(number: int) -> int:
    if number > LARGEST_HANDLE:
        raise ProtocolError(f"{number} is no generator")
    return number


def get_number(data: memoryview, what: str) -> int:
    return _unpack(HANDLE, data, what)[0]


def get_handle(data: memoryview, what: str) -> int:
    return _handle(get_number(data, what))


def _handle(handle: int) -> int:
    if not 0 < handle <= LARGEST_HANDLE:
        raise ProtocolError(f"{handle} is no handle")
    return handle
