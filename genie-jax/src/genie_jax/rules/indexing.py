"""Gather and scatter: by tensors of indices, made of what each axis contributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import attrs
import jax
import numpy as np
import torch
from jax.lax import GatherScatterMode

from genie.errors import UnsupportedOperation
from genie_jax.dtypes import is_key
from genie_jax.keys import key_shape
from genie_jax.rules import Equation, Tensor, computations, rule
from genie_jax.rules.slicing import positions
from genie_jax.rules.unsigned import narrowed, widened
from genie_jax.rules.wide import computable, is_small, put

# A scatter that computes with what is there, element after element, of so many updates at most: each is some nodes.
_LONGEST = 128


@attrs.frozen
class _Window:
    """What gather reads and scatter writes: in rows of the operand, whose columns are the axes taken whole."""

    rows: Tensor  # int64, of the batch's shape and then the sizes of the axes that are not taken whole
    inside: Tensor | None  # bool, of the batch's shape: whether the whole window is in bounds, where that may not be
    cut: tuple[int, ...]  # operand's axes of the rows
    whole: tuple[int, ...]  # those of the columns


def _window(
    here: Equation,
    operand: Tensor,
    indices: Tensor,
    sizes: Sequence[int],
    mapped: Sequence[int],
    batching: Sequence[tuple[int, int]],
    mode: Any,
) -> _Window:
    starts = positions(here.taken[1].dtype, indices)
    batch = list(starts.shape[:-1])
    shape = operand.shape
    moved = {axis: number for number, axis in enumerate(mapped)}
    along = dict(batching)
    cut = tuple(a for a in range(operand.ndim) if a in along or sizes[a] != shape[a] or (shape[a] <= 1 and a in moved))
    whole = tuple(a for a in range(operand.ndim) if a not in cut)
    inside: Tensor | None = None
    drops = mode not in (GatherScatterMode.CLIP, GatherScatterMode.PROMISE_IN_BOUNDS)
    if drops and mapped:
        limits = [shape[axis] - sizes[axis] for axis in mapped]
        for number, limit in enumerate(limits):
            start = starts[..., number]
            fits = torch.logical_and(start >= 0, start <= limit)
            inside = fits if inside is None else torch.logical_and(inside, fits)
    rows: Tensor | None = None
    for place, axis in enumerate(cut):
        if axis in along:
            dimension = along[axis]
            line = torch.arange(batch[dimension]).reshape([-1 if d == dimension else 1 for d in range(len(batch))])
        elif axis in moved:
            line = torch.clamp(starts[..., moved[axis]], 0, shape[axis] - sizes[axis])
        else:
            line = torch.zeros([1] * len(batch), dtype=torch.int64)
        line = line.reshape([*line.shape, *[1] * len(cut)])
        if sizes[axis] > 1 and axis not in along:
            line = line + torch.arange(sizes[axis]).reshape([-1 if p == place else 1 for p in range(len(cut))])
        rows = line if rows is None else rows * shape[axis] + line
    full = [*batch, *(1 if axis in along else sizes[axis] for axis in cut)]
    if rows is None:
        rows = torch.zeros(full, dtype=torch.int64)
    return _Window(rows.expand(full), inside, cut, whole)


@rule("gather")
def _gather(
    here: Equation,
    operand: Tensor,
    indices: Tensor,
    *,
    dimension_numbers: Any,
    slice_sizes: Any,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: Any,
    fill_value: Any,
) -> Tensor:
    numbers = dimension_numbers
    _known(mode)
    sizes = slice_sizes
    batching = list(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    window = _window(here, operand, indices, sizes, numbers.start_index_map, batching, mode)
    columns = [operand.shape[axis] for axis in window.whole]
    table = operand.permute([*window.cut, *window.whole]).reshape(
        prod(operand.shape[axis] for axis in window.cut), *columns
    )
    if table.shape[0] == 0:
        taken = torch.zeros([*window.rows.shape, *columns], dtype=operand.dtype)
    else:
        taken = _rows(table, window)
    if window.inside is not None:
        fill = _fill(here.taken[0].dtype, fill_value)
        mask = window.inside.reshape([*window.inside.shape, *[1] * (taken.ndim - window.inside.ndim)])
        taken = torch.where(mask, taken, torch.full([], fill, dtype=taken.dtype))
    batch = indices.ndim - 1
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    at = {axis: batch + place for place, axis in enumerate((*window.cut, *window.whole))}
    kept = [at[axis] for axis in range(operand.ndim) if axis not in gone]
    taken = taken.permute([*range(batch), *kept, *(at[axis] for axis in sorted(gone))])
    taken = taken.reshape(taken.shape[: batch + len(kept)])
    order: list[int] = [-1] * taken.ndim
    for place, dimension in enumerate(numbers.offset_dims):
        order[dimension] = batch + place
    rest = iter(range(batch))
    return taken.permute([next(rest) if each < 0 else each for each in order])


def _rows(table: Tensor, window: _Window) -> Tensor:
    """The rows of a window, [*rows, *columns]."""
    rows, columns = window.rows, table.shape[1:]
    if len(columns) == 1 and len(window.cut) == rows.shape[-1] == 1 and table.dtype in _EMBEDDED:
        return torch.embedding(table, rows.reshape(rows.shape[:-1])).reshape([*rows.shape, *columns])
    return torch.index_select(table, 0, rows.reshape(-1)).reshape([*rows.shape, *columns])


_EMBEDDED = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def _fill(dtype: Any, fill_value: Any) -> Any:
    """What JAX puts in place of what is out of bounds, unless told."""
    if is_key(dtype):
        if prod(key_shape(dtype)) > 2:
            raise UnsupportedOperation(f"{dtype} taken from places that may be out of bounds", hint='mode="clip"')
        return -1  # every bit set
    if fill_value is not None:
        value = np.asarray(fill_value).astype(dtype)
        return value.view(f"i{dtype.itemsize}").item() if dtype.kind == "u" and dtype.itemsize > 1 else value.item()
    if jax.numpy.issubdtype(dtype, np.inexact):
        return float("nan")
    if dtype == np.bool_:
        return True
    if dtype.kind == "u":
        return -1 if dtype.itemsize > 1 else 255
    return int(jax.numpy.iinfo(dtype).min)


def _known(mode: Any) -> None:
    if mode not in (GatherScatterMode.CLIP, GatherScatterMode.FILL_OR_DROP, GatherScatterMode.PROMISE_IN_BOUNDS):
        raise UnsupportedOperation(f"gather and scatter of mode {mode}")


@rule("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def _scatter(
    here: Equation,
    operand: Tensor,
    indices: Tensor,
    updates: Tensor,
    *,
    dimension_numbers: Any,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: Any,
    update_jaxpr: Any,
    update_consts: Any,
) -> Tensor:
    numbers = dimension_numbers
    _known(mode)
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    of_window = list(numbers.update_window_dims)
    kept = [axis for axis in range(operand.ndim) if axis not in gone]
    sizes = [1] * operand.ndim
    for axis, dimension in zip(kept, of_window, strict=True):
        sizes[axis] = updates.shape[dimension]
    batching = list(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    # Out of bounds, XLA leaves an update out, whatever was promised.
    checked = mode if mode == GatherScatterMode.CLIP else GatherScatterMode.FILL_OR_DROP
    if operand.numel() == 0 or updates.numel() == 0:
        return operand
    window = _window(here, operand, indices, sizes, numbers.scatter_dims_to_operand_dims, batching, checked)
    alone = window.rows.numel() == len(window.cut) == 1 and not batching and not is_small(operand)
    if alone and _named(update_jaxpr) == "second":
        return _set_at_one(operand, window, updates.reshape([sizes[axis] for axis in range(operand.ndim)]))

    batch = [dimension for dimension in range(updates.ndim) if dimension not in of_window]
    by_axis = dict(zip(kept, of_window, strict=True))
    order = (*window.cut, *window.whole)
    given = updates.permute([*batch, *(by_axis[axis] for axis in order if axis in by_axis)])
    columns = [operand.shape[axis] for axis in window.whole]
    rows = window.rows
    given = given.reshape([*rows.shape, *columns]).reshape(rows.numel(), prod(columns))
    table = operand.permute(order).reshape(-1, prod(columns))
    count = table.shape[0]
    if window.inside is not None:  # those that are out of bounds go to a row that is dropped
        inside = window.inside.reshape([*window.inside.shape, *[1] * (rows.ndim - window.inside.ndim)])
        rows = torch.where(inside, rows, torch.full([], count, dtype=torch.int64))
        table = torch.cat([table, table[:1]])
    computed = _combined(here, table, rows.reshape(-1), given, update_jaxpr, update_consts, unique_indices)
    back = [order.index(axis) for axis in range(operand.ndim)]
    return computed[:count].reshape([operand.shape[axis] for axis in order]).permute(back)


def _named(jaxpr: Any) -> str | None:
    return "second" if jaxpr is None else computations.named(jaxpr)


def _set_at_one(operand: Tensor, window: _Window, given: Tensor) -> Tensor:
    """Put in one place of one axis, where there is no other update to meet: out of bounds, what is there stays."""
    (axis,), row = window.cut, window.rows.reshape([1])
    if window.inside is not None:
        given = torch.where(window.inside.reshape([1] * operand.ndim), given, torch.index_select(operand, axis, row))
    return put(operand, axis, row, given)


def _combined(
    here: Equation, table: Tensor, rows: Tensor, given: Tensor, jaxpr: Any, constants: Any, unique: bool
) -> Tensor:
    how = _named(jaxpr)
    dtype = here.taken[0].dtype
    if how == "second":
        return put(table, 0, rows, given)
    if how in ("add", "add_any") and table.dtype != torch.bool:
        return computable(lambda to, each: torch.index_add(to, 0, rows, each), table, given)
    if how == "sub":
        return computable(lambda to, each: torch.index_add(to, 0, rows, each, alpha=-1), table, given)
    if how in _REDUCTIONS and table.dtype != torch.bool and not table.is_complex():
        wide = [widened(dtype, each) for each in (table, given)]
        by = _REDUCTIONS[how]
        reduced = computable(lambda to, each: torch.index_reduce(to, 0, rows, each, by), *wide)
        return narrowed(dtype, reduced, table.dtype)

    def both(old: Tensor, new: Tensor) -> Tensor:
        return computations.each(here, jaxpr, constants, old, new)[0]

    return _one_by_one(table, rows, given, both, unique)


_REDUCTIONS = {"mul": "prod", "min": "amin", "max": "amax"}


def _one_by_one(
    table: Tensor, rows: Tensor, given: Tensor, both: Callable[[Tensor, Tensor], Tensor], unique: bool
) -> Tensor:
    if unique:
        return put(table, 0, rows, both(torch.index_select(table, 0, rows), given))
    if rows.numel() > _LONGEST:
        raise UnsupportedOperation(
            f"a scatter of {rows.numel()} updates that may meet, by a computation that is no plain sum, product, least "
            f"or greatest ({_LONGEST} at most)",
            hint="say unique_indices=True where they do not meet",
        )
    for number in range(rows.numel()):
        row = rows[number : number + 1]
        made = both(torch.index_select(table, 0, row), given[number : number + 1])
        table = put(table, 0, row, made)
    return table
