"""Annotated graphs as text, compared with ``tests/golden/semantics_*.txt``. A change there is one to be read.

To renew the texts, and read the difference: ``RENEW_GOLDEN=1 pytest tests/patterns/test_golden.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from patterns.programs import PROGRAMS

import genie
from genie.graph import Graph, Semantics, ValueSemantics, node_text, spec_text
from genie.workload import Summary

GOLDEN = Path(__file__).parent.parent / "golden"


_SHOWN = ("role", "phase", "modality", "residency", "memory_pattern", "colocation_group")
_EXPLAINED = ("role", "phase", "colocation_group")


def text(graph: Graph) -> str:
    """A graph, what it is, and what is said of its inputs and nodes. No source lines: they are of a machine."""
    summary = genie.summary(graph)
    return "\n".join([*_whole(graph, summary), *_inputs(graph), *_nodes(graph)]) + "\n"


def _whole(graph: Graph, summary: Summary) -> Iterator[str]:
    yield f"workload: {summary.workload}{', training' if summary.training else ''}"
    yield f"calls: {', '.join(str(call.phase) for call in summary.calls)}"
    yield f"encoders: {', '.join(f'{modality} by {phase}' for modality, phase in summary.encoders.items()) or '–'}"
    yield f"fusion: {', '.join(f'#{id}' for id in summary.fusion) or '–'}"
    yield f"outputs: {', '.join(f'%{value} {graph.meanings[value].residency}' for value in graph.outputs)}"


def _inputs(graph: Graph) -> Iterator[str]:
    for entry in graph.inputs:
        yield f"input %{entry.value} {spec_text(graph.values[entry.value])} {entry.name}"
        yield _labels(graph.meanings[entry.value], _SHOWN[2:])


def _nodes(graph: Graph) -> Iterator[str]:
    before: dict[str, str] = {}
    for node in graph.steps:
        yield node_text(msgspec.structs.replace(node, source=-1), graph)
        its = node.semantics
        yield _labels(its, _SHOWN) + (" · critical" if its.critical_path else "")
        why: dict[str, str] = {}
        for each in its.evidence:
            said = f"{each.reason} ({each.source}, {each.confidence:g})"
            why[each.label] = f"{why[each.label]}; {said}" if each.label in why else said
        for label in _EXPLAINED:
            if label in why and before.get(label) != why[label]:  # what holds on is told once
                yield f"        {label}: {why[label]}"
        before = why


def _labels(of: Semantics | ValueSemantics | None, names: Sequence[str]) -> str:
    known = [str(said) for name in names if (said := getattr(of, name, None)) is not None]
    return f"    {' · '.join(known) or '–'}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_text_is_as_it_was_read(name):
    path = GOLDEN / f"semantics_{name}.txt"
    now = text(genie.annotate(PROGRAMS[name]()))
    if os.environ.get("RENEW_GOLDEN"):
        path.write_text(now)
    assert now == path.read_text()


def test_there_is_a_program_for_each_text():
    assert {path.stem.removeprefix("semantics_") for path in GOLDEN.glob("semantics_*.txt")} == PROGRAMS.keys()
