"""The committed corpus of the fuzz targets: every input is refused or taken, within its bounds of memory and time."""

from __future__ import annotations

import pytest

from genie_fuzz import targets
from genie_fuzz.harness import CORPUS, corpus, measured, watched

_FEWEST = 8


@pytest.mark.parametrize("name", targets.NAMES)
def test_no_input_surprises(name: str) -> None:
    target = targets.load(name)
    seeds = list(target.seeds())
    inputs = [(f"seed {number}", data) for number, data in enumerate(seeds)]
    inputs += [(path.name, path.read_bytes()) for path in corpus(target)]
    assert len(inputs) >= _FEWEST
    with watched():
        for label, data in inputs:
            try:
                measured(target, data)
            except BaseException as error:
                error.add_note(f"at {name}/{label}: `python fuzz/one.py {name} {CORPUS / name / label}`")
                raise


@pytest.mark.parametrize("name", targets.NAMES)
def test_prefixes_of_seeds_are_inputs_too(name: str) -> None:
    target = targets.load(name)
    with watched():
        for data in target.seeds():
            for end in sorted({0, 1, 2, len(data) // 3, len(data) // 2, len(data) - 1}):
                target.one(data[:end])


def test_the_corpus_is_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= set(targets.NAMES)
    assert len(files) < 1000
    assert sum(path.stat().st_size for path in files) < 1 << 20
