"""Mutations that keep msgpack well-formed: plain bytes seldom get past a decoder's first check."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from genie_fuzz.feed import EDGES

_TEXTS = ("", "float32", "int64", "bool", "aten::add", "Tensor", "v", "l", "c", "s", "dtype", "generator", "self", "\x00")
_SPECIAL: tuple[Any, ...] = (None, True, False, 0.0, -0.0, 1e308, float("inf"), float("-inf"), float("nan"), b"", [], {})


def mutate(data: bytes, at: int, seed: int, largest: int) -> bytes | None:
    """Another input, or ``None`` where there is no msgpack to change. The bytes before ``at`` stay."""
    rng = random.Random(seed)
    try:
        tree = msgspec.msgpack.decode(data[at:])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _changed(tree, rng)
    try:
        made = data[:at] + msgspec.msgpack.encode(tree)
    except (OverflowError, TypeError, ValueError, RecursionError):
        return None
    return made if len(made) <= largest else None


def _changed(tree: Any, rng: random.Random) -> Any:
    """With one of its parts changed; parts near the root are as likely as all below them."""
    children = list(tree) if isinstance(tree, list | dict) else []
    if not children or rng.random() < 0.15:
        return _other(tree, rng)
    if isinstance(tree, list):
        at = rng.randrange(len(tree))
        tree[at] = _changed(tree[at], rng)
    else:
        key = rng.choice(children)
        tree[key] = _changed(tree[key], rng)
    return tree


def _other(part: Any, rng: random.Random) -> Any:
    if rng.random() < 0.15:
        return rng.choice(_SPECIAL)
    if isinstance(part, bool) or part is None:
        return rng.choice((True, False, None, 0, 1, ""))
    if isinstance(part, int):
        near = part + rng.choice((-1, 1, -8, 8))
        edge = rng.choice(EDGES)
        return rng.choice((near, edge, -edge if edge <= 1 << 63 else edge, rng.randrange(16)))
    if isinstance(part, float):
        return rng.choice((part * 2, -part, *(each for each in _SPECIAL if isinstance(each, float))))
    if isinstance(part, str):
        return rng.choice((part + "x", part[:-1], part * 2, *_TEXTS))
    if isinstance(part, bytes):
        return rng.choice((part + b"\0", part[:-1], part * 2))
    if isinstance(part, list):
        return _list(part, rng)
    if isinstance(part, dict) and part:
        gone = rng.choice(list(part))
        return {key: value for key, value in part.items() if key != gone}
    return part


def _list(part: list[Any], rng: random.Random) -> list[Any]:
    if not part:
        return [rng.choice(_SPECIAL), rng.choice(EDGES)]
    one, other = rng.randrange(len(part)), rng.randrange(len(part))
    match rng.randrange(5):
        case 0:
            return part[:one] + part[one + 1 :]
        case 1:
            return part[:one] + [part[other]] + part[one:]
        case 2:
            swapped = list(part)
            swapped[one], swapped[other] = part[other], part[one]
            return swapped
        case 3:
            return part * rng.choice((2, 3))
        case _:
            return [part] if rng.random() < 0.5 else part[:one]
