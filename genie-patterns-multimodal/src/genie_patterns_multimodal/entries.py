"""Of which modality the data is that enters a graph, by how it enters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from genie.graph.structure import SAME
from genie.match import Entry, Structure, attentions, calls, flow

_MANY_TABLES = 2
_VERY_MANY_TABLES = 4  # where there is attention: words, positions, segments and languages are looked up, too


class Kind(NamedTuple):
    modality: str
    reason: str
    confidence: float


def kinds(view: Structure) -> Mapping[int, Kind]:
    """Number of the entry → what it is; of unknown ones nothing."""
    graph = view.graph
    entries = flow(graph).entries
    call_of = calls(graph)
    attending = {call_of[each.nodes[0]] for each in attentions(graph)}
    by_call: dict[int, list[Entry]] = {}
    for entry in entries:
        by_call.setdefault(entry.call, []).append(entry)
    sparse = {call for call, found in by_call.items() if _sparse(view, found, call in attending)}
    pictured = {entry.call for entry in entries if entry.way in ("image", "frames", "signal")}
    found: dict[int, Kind] = {}
    for number, entry in enumerate(entries):
        if entry.way == "rows" and entry.call in pictured and entry.call not in sparse:
            continue  # a class that a picture is made of, say: one id for all of it
        kind = _kind(view, entry, entry.call in sparse, entry.call in attending)
        if kind is not None and not _is_number(view, entry, kind, by_call[entry.call]):
            found[number] = kind
    return found


def _sparse(view: Structure, entries: list[Entry], attends: bool) -> bool:
    """Whether the integers of a call are categories: bags, or one row of each of several tables."""
    if not attends and any(entry.way == "rows" and view.names[entry.at] != "embedding" for entry in entries):
        return True
    single = [
        entry for entry in entries if entry.way == "rows" or (entry.way == "ids" and view.shape(entry.value)[-1] == 1)
    ]
    # One number that is looked up in a table of each layer is one column.
    columns = min(len({view.storage[e.table] for e in single}), len({view.source[e.value] for e in single}))
    if columns >= (_VERY_MANY_TABLES if attends else _MANY_TABLES):
        return True
    lookups = [entry for entry in entries if entry.way == "ids"]
    others = [entry for entry in entries if entry.way in ("image", "signal", "frames")]
    if attends or others or not lookups:
        return False
    # One table for all columns: the columns' offsets are added to the ids before they are looked up.
    value = lookups[0].value
    maker = view.maker[view.source[value]]
    return maker >= 0 and view.names[maker] == "add" and len(view.shape(value)) == 2


def _is_number(view: Structure, entry: Entry, kind: Kind, others: list[Entry]) -> bool:
    """One number beside each picture or sound: its class, or its time; no text, and no column."""
    if not any(other.way in ("image", "frames", "signal") for other in others):
        return False
    if kind.modality == "text":
        return entry.way == "rows" and len(view.shape(entry.value)) == 1 and view.names[entry.at] == "embedding"
    return kind.modality == "tabular" and entry.way == "features" and _by_sines(view, entry.value)


def _by_sines(view: Structure, value: int) -> bool:
    for _ in range(8):
        maker = view.maker[view.source[value]]
        if maker < 0 or not view.operands[maker]:
            return False
        if view.names[maker] in ("sin", "cos"):
            return True
        if view.names[maker] not in ("cat", "stack", "slice", "select", "mul", "constant_pad_nd"):
            return False
        value = view.operands[maker][0]
    return False


def _kind(view: Structure, entry: Entry, sparse: bool, attends: bool) -> Kind | None:
    shape = view.shape(entry.value)
    if entry.way in ("ids", "rows"):
        if sparse:
            return Kind("tabular", "categories that look up one row each", 0.9)
        return Kind("text", f"ids that look up rows of a table of {view.shape(entry.table)[0]}", 0.9)
    if entry.way == "frames":
        return Kind("vision", "a convolution over three dimensions", 0.9)
    if entry.way == "image":
        return _image(view, entry)
    if entry.way == "signal":
        return Kind("audio", "a convolution over time", 0.85)
    if entry.way == "features" and _patches(view, entry):
        return Kind("vision", "patches of a picture, flattened", 0.8)
    given = view.maker[view.part[entry.value]] < 0
    if len(shape) == 2 and (given or not attends) or sparse:
        return Kind("tabular", "columns of numbers", 0.8)
    return None


def _image(view: Structure, entry: Entry) -> Kind:
    """Pictures come with channels; a spectrogram has none, and is given one for the convolution's sake."""
    given = view.part[entry.value]
    if len(view.shape(given)) == 3 and view.shape(entry.value)[1] == 1:
        return Kind("audio", "a two-dimensional convolution over frames of features", 0.8)
    return Kind("vision", f"a convolution over {view.shape(entry.value)[1]} channels", 0.95)


_PREPARES = frozenset(("", "sub", "div", "mul", "add", "rsub", "clamp", "randn", "rand"))  # "": it is given
_CUTS = SAME | frozenset("unfold im2col slice".split())


def _patches(view: Structure, entry: Entry) -> bool:
    value = entry.value
    for _ in range(12):
        maker = view.maker[value]
        if maker < 0 or view.names[maker] not in _CUTS or not view.operands[maker]:
            break
        value = view.operands[maker][0]
    given = view.made_by(value) in _PREPARES and value != entry.value
    return given and len(view.shape(value)) in (4, 5) and view.shape(value)[1] in (1, 3)
