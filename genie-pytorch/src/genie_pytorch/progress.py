"""What a program's loop keeps from step to step, and how it goes on: by which rule each number and each tensor moves.

A loop's state is made of dicts, lists and caches. After a step its *leaves* are noted: numbers, and of tensors on the
device their handles and sizes. Three notes say how the leaves move. A leaf that moves in no way known here is a
:class:`NotRegular`: the loop is then not one that a node could go on with by itself.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch

from genie_pytorch.lift import on_device
from genie_pytorch.native import _C

Tensor = torch.Tensor


class NotRegular(Exception):
    """Why a loop cannot be gone on with by rule."""


@attrs.frozen
class Place:
    """Where a leaf is: ``owner[key]``, or its attribute."""

    path: str
    owner: Any
    key: Any

    def get(self) -> Any:
        return vars(self.owner)[self.key] if _has_attributes(self.owner) else self.owner[self.key]

    def set(self, value: Any) -> None:
        if _has_attributes(self.owner):
            vars(self.owner)[self.key] = value
        elif isinstance(self.owner, tuple):
            raise NotRegular(f"{self.path} is in a tuple, and changes")
        else:
            self.owner[self.key] = value


@attrs.frozen
class Seen:
    """A tensor on the device, without holding it: what is held is not donated."""

    handle: int
    sizes: tuple[int, ...]
    base: int  # the handle of the tensor it is a view of, which it keeps alive; or 0
    layout: tuple[int, ...]  # strides and offset; nothing if it is contiguous, from the beginning of its memory


@attrs.frozen
class Made:
    """A leaf that each step makes anew: output ``output`` of its plan, of these sizes after the last step noted."""

    output: int
    sizes: tuple[int, ...]
    growth: tuple[int, ...]

    def after(self, steps: int) -> list[int]:
        return [size + steps * growth for size, growth in zip(self.sizes, self.growth, strict=True)]


@attrs.frozen
class Counted:
    """A number that grows by as much in each step."""

    number: int
    growth: int


Rule = Made | Counted


def places(state: dict[str, Any]) -> list[Place]:
    """The leaves' places, in an order of their own that does not change as long as the structure does not."""
    return list(_places(state, "", set()))


def note(found: Sequence[Place]) -> list[Any]:
    """The leaves as they are now."""
    return [_noted(place) for place in found]


def rules(
    found: Sequence[Place], notes: Sequence[Sequence[Any]], firsts: Sequence[int], outputs: int
) -> dict[int, Rule]:
    """How each leaf moves (by its index), those left out not at all. ``notes`` are of three steps in a row, whose plan
    named its ``outputs`` outputs from ``firsts`` on. Raises :class:`NotRegular`."""
    moving: dict[int, Rule] = {}
    for index, (place, one, two, three) in enumerate(zip(found, *notes, strict=True)):
        rule = _rule(place, (one, two, three), firsts, outputs)
        if rule is not None:
            moving[index] = rule
    return moving


def bases(notes: Sequence[Any], first: int) -> set[int]:
    """Outputs that leaves are views of: kept alive by them, and by nobody else's leave."""
    return {leaf.base - first for leaf in notes if isinstance(leaf, Seen) and leaf.base}


def moved_on(
    found: Sequence[Place], moving: dict[int, Rule], steps: int, tensor: Callable[[Made, Tensor], Tensor]
) -> None:
    """Write what the leaves are ``steps`` steps later to their places; ``tensor`` makes one like the one there."""
    for index, rule in moving.items():
        place = found[index]
        place.set(rule.number + steps * rule.growth if isinstance(rule, Counted) else tensor(rule, place.get()))


def is_as(
    found: Sequence[Place], before: Sequence[Any], now: Sequence[Any], moving: dict[int, Rule], steps: int
) -> str:
    """Which leaf is not what it must be ``steps`` steps after ``before`` was noted, if any; by number and size."""
    if len(found) != len(before) or len(now) != len(before):
        return "something else is kept"
    for index, (place, was, leaf) in enumerate(zip(found, before, now, strict=True)):
        rule = moving.get(index)
        if isinstance(rule, Counted):
            right = leaf == rule.number + steps * rule.growth
        elif isinstance(rule, Made):
            right = isinstance(leaf, Seen) and list(leaf.sizes) == rule.after(steps) and leaf.layout == was.layout
        elif isinstance(was, tuple):
            right = isinstance(leaf, tuple) and leaf[0] is was[0] and leaf[1] == was[1]
        else:
            right = leaf is was or leaf == was
        if not right:
            return f"{place.path} is otherwise"
    return ""


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """The same leaves in containers of their own."""
    memo: dict[int, Any] = {}
    for place in places(state):
        leaf = place.get()
        memo[id(leaf)] = leaf
    result: dict[str, Any] = copy.deepcopy(state, memo)
    return result


# --- walking -------------------------------------------------------------------------------------

_OPAQUE = (
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    torch.Generator,
)


def _has_attributes(value: Any) -> bool:
    return any(
        kind.__name__ in ("Cache", "CacheLayerMixin", "LinearAttentionCacheLayerMixin", "EncoderDecoderCache")
        and kind.__module__ == "transformers.cache_utils"
        for kind in type(value).__mro__
    )


def _is_constant(value: Any) -> bool:
    kinds = {kind.__name__ for kind in type(value).__mro__}
    return isinstance(value, _OPAQUE) or bool(kinds & {"PreTrainedConfig", "PretrainedConfig", "GenerationConfig"})


def _places(value: Any, path: str, above: set[int]) -> Iterator[Place]:
    if id(value) in above:
        raise NotRegular(f"{path} contains itself")
    above = above | {id(value)}
    items: list[tuple[Any, Any]]
    if _has_attributes(value):
        items = list(vars(value).items())
    elif isinstance(value, dict):
        items = list(value.items())
    else:
        items = list(enumerate(value))
    for key, item in items:
        name = f"{path}.{key}" if path else str(key)
        if isinstance(item, dict | list | tuple) or _has_attributes(item):
            yield from _places(item, name, above)
        elif isinstance(item, Tensor | int | float) or _is_constant(item):
            yield Place(name, value, key)
        else:
            raise NotRegular(f"{name} is a {type(item).__name__}, of which nothing is known")


def _noted(place: Place) -> Any:
    leaf = place.get()
    if not isinstance(leaf, Tensor):
        return leaf
    if not on_device(leaf):
        return leaf, 0 if leaf.is_inference() else leaf._version
    _, handle, _ = _C.peek(leaf)
    plain = leaf.is_contiguous() and leaf.storage_offset() == 0
    base = _C.peek(leaf._base)[1] if leaf._base is not None and on_device(leaf._base) else 0
    return Seen(
        handle, tuple(map(int, leaf.shape)), base, () if plain else (*leaf.stride(), int(leaf.storage_offset()))
    )


def _rule(place: Place, seen: tuple[Any, Any, Any], firsts: Sequence[int], outputs: int) -> Rule | None:
    one, two, three = seen
    if isinstance(three, Seen) and isinstance(two, Seen) and isinstance(one, Seen):
        return _tensor_rule(place, (one, two, three), firsts, outputs)
    if type(one) is not type(two) or type(two) is not type(three):
        raise NotRegular(f"{place.path} changes its type")
    if isinstance(three, int) and not isinstance(three, bool):
        if three - two != two - one:
            raise NotRegular(f"{place.path} goes {one}, {two}, {three}")
        return Counted(three, three - two) if three != two else None
    if isinstance(three, tuple):  # a tensor of the host and its version
        same = one[0] is two[0] is three[0] and one[1] == two[1] == three[1]
    else:
        same = one is two is three or (isinstance(three, bool | float | str | bytes) and one == two == three)
    if not same:
        raise NotRegular(f"{place.path} changes from step to step")
    return None


def _tensor_rule(place: Place, seen: tuple[Seen, Seen, Seen], firsts: Sequence[int], outputs: int) -> Made | None:
    one, two, three = seen
    if one.handle == two.handle == three.handle:
        if not one.sizes == two.sizes == three.sizes:
            raise NotRegular(f"{place.path} is resized in place")
        return None
    output = three.handle - firsts[2]
    if not 0 <= output < outputs or any(
        each.handle - first != output for each, first in zip(seen, firsts, strict=True)
    ):
        raise NotRegular(f"{place.path} is not made by the step in the same way each time")
    ranks = {len(each.sizes) for each in seen}
    growth = tuple(b - a for a, b in zip(two.sizes, three.sizes, strict=len(ranks) == 1))
    if len(ranks) > 1 or growth != tuple(b - a for a, b in zip(one.sizes, two.sizes, strict=True)):
        raise NotRegular(f"{place.path} has the sizes {one.sizes}, {two.sizes}, {three.sizes}")
    if any(each.layout for each in seen) and (any(growth) or not one.layout == two.layout == three.layout):
        raise NotRegular(f"{place.path} is a view that changes")
    return Made(output, three.sizes, growth)
