"""Bindings: the reference decoder, in Python, and the native one must say the same of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

from genie.bindings import Prediction
from genie.errors import ProtocolError
from genie_backend_local.native import load
from genie_fuzz.feed import Feed, fed
from genie_fuzz.harness import Target, check, refuses

_NATIVE = load()
_MOST = 8  # executions of one plan


def one(data: bytes) -> None:
    """Numbers of inputs and parameters, the parameters, then what is sent, execution for execution."""
    feed = Feed(data)
    inputs = feed.byte() % 8
    words = [feed.number() for _ in range(feed.byte() % 8)]
    reference, native = Prediction(inputs, words), _NATIVE.Prediction(inputs, words)
    for _ in range(_MOST):
        if not feed:
            return
        sent = feed.some()
        due = refuses((ProtocolError,), lambda: reference.decode(sent))  # noqa: B023
        got = refuses((ProtocolError,), lambda: native.decode(sent))  # noqa: B023
        check((due is None) == (got is None), f"{sent.hex()}: {due} by the reference, natively {got}")
        if due is not None and got is not None:
            check(list(due) == list(got[0]), f"{sent.hex()}: {due} by the reference, natively {got}")  # type: ignore[call-overload, index]


def seeds() -> Iterator[bytes]:
    for inputs, words in ((0, []), (2, [5, 1 << 40]), (7, [1, 2, 3])):
        sender = Prediction(inputs, words)
        head = bytes((inputs, len(words))) + b"".join(b"\xff" + word.to_bytes(8, "little") for word in words)
        sent = b""
        for step in range(4):
            handles = [10 + step, *range(1, 1 + inputs)]
            sent += fed(sender.encode([*handles, *(word + step for word in words)], anew=step == 2))
        yield head + sent
    yield b"\x01\x00" + fed(b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01") + fed(b"\x01\xff\xff\x03\x00")


TARGET = Target(
    name="bindings",
    one=one,
    seeds=seeds,
    modules=("genie.bindings",),
    bytes_per_byte=64,
    bytes_at_least=1 << 15,
    seconds=0.2,
    largest=1024,
    share=2.0,
)
