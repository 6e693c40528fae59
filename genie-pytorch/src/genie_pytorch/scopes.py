"""What the user said of operators and values, as the numbers the recorder puts on commands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from genie import marks
from genie.graph import Semantics
from genie_pytorch.native import _C


class _Said(NamedTuple):
    word: Semantics | None
    session: Semantics | None  # yields to whatever anybody else says


_lock = threading.Lock()
_table: list[_Said] = [_Said(None, None)]
_numbers: dict[_Said, int] = {_table[0]: 0}

# Host tensors, and the numbers of what was said of them.
_hosts = WeakTensorKeyDictionary()


def install() -> None:
    """Have the recorder know what is said from now on, and what was said before."""
    for verb in (marks.mark, marks.session):
        verb._torchdynamo_disable = True  # type: ignore[attr-defined]  # Dynamo can't follow it, and need not try
    _C.follow_marks(_now, combined)
    marks.follow(lambda: _C.set_mark(_now()))


def number(word: Semantics | None, session: Semantics | None = None) -> int:
    said = _Said(word, session)
    known = _numbers.get(said)
    if known is None:
        with _lock:
            known = _numbers.setdefault(said, len(_table))
            if known == len(_table):
                _table.append(said)
    return known


def word(number: int) -> Semantics:
    """All that a number says; none says nothing but 0."""
    said = marks.merged(*_table[number])
    assert said is not None
    return said


def _now() -> int:
    return number(*marks.in_force())


def combined(inner: int, outer: int) -> int:
    """What the inner one says, and of the outer one what the inner is silent about."""
    one, other = _table[inner], _table[outer]
    return number(marks.merged(one.word, other.word), marks.merged(one.session, other.session))


def more(said: Semantics) -> Callable[[int], int]:
    """Number of what was said before → number of that and ``said``, which wins."""
    mine = number(said)
    return lambda before: combined(mine, before)


# --- tensors -------------------------------------------------------------------------------------


def mark_device_tensor(tensor: torch.Tensor, said: Semantics) -> None:
    _C.mark_value(tensor, more(said))


def mark_host_tensor(tensor: torch.Tensor, said: Semantics) -> None:
    """Its counterparts to come carry the mark; see :func:`lifted`."""
    _hosts[tensor] = more(said)(_hosts.get(tensor, 0))


def lifted(host: torch.Tensor, value: torch.Tensor) -> None:
    """``value`` is the counterpart of ``host``, from now on."""
    if _hosts:
        said = _hosts.get(host)
        if said is not None:
            _C.mark_value(value, lambda before: combined(said, before))
