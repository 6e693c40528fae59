"""The user's word: what can be said, where it holds, and who wins."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Any

import pytest
from rows import Row, RowFrontend

import genie
from genie import Device, marks, runtime
from genie.errors import ConfigError
from genie.graph import Semantics
from genie.graph.vocabulary import MODALITIES, PHASES, PRIORITIES, RESIDENCIES
from genie.plugins import registry


def said() -> dict[str, Any]:
    """The labels in force here, those of sessions included."""
    word = marks.merged(*marks.in_force())
    return {} if word is None else labels(word)


def labels(word: Semantics) -> dict[str, Any]:
    names = [name for name in word.__struct_fields__ if name != "evidence"]
    known = {name: getattr(word, name) for name in names}
    return {name: label for name, label in known.items() if label is not None}


# --- what can be said ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "words"),
    [("phase", PHASES), ("modality", MODALITIES), ("residency", RESIDENCIES)],
    ids=["phase", "modality", "residency"],
)
def test_every_word_of_the_vocabulary(key: str, words: dict[str, str]) -> None:
    for word in words:
        with genie.mark(**{key: word}):
            assert said() == {key: word}


def test_open_words_and_priorities() -> None:
    with genie.mark(role="my role — ours", colocate="g" * 256, priority=-(1 << 63)):
        assert said() == {"role": "my role — ours", "colocation_group": "g" * 256, "priority": -(1 << 63)}
    for name, number in PRIORITIES.items():
        with genie.mark(priority=name):
            assert said() == {"priority": number}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"phaze": "decode"}, ["'phaze'", "did you mean 'phase'?", "colocate"]),
        ({"colocation_group": "a"}, ["'colocation_group'", "phase, modality, residency, role, priority, colocate"]),
        ({"phase": "decoding"}, ["'decoding' is no phase", "did you mean 'decode'?", "prefill", "denoise"]),
        ({"modality": "smell"}, ["'smell' is no modality", "text, vision, audio, tabular, multimodal"]),
        ({"residency": 3}, ["3 is no residency", "kv_cache"]),
        ({"phase": None}, ["None is no phase"]),
        ({"role": ""}, ["'' is no value for role", "1 to 256"]),
        ({"role": "r" * 257}, ["is no value for role", "1 to 256"]),
        ({"colocate": "a\nb"}, ["is no value for colocate", "printable"]),
        ({"priority": True}, ["True is no priority"]),
        ({"priority": 1 << 63}, ["is no priority", "64 bits"]),
        ({"priority": "urgent"}, ["'urgent' is no priority", "batch, interactive, realtime"]),
        ({}, ["genie.mark() says nothing", "phase"]),
    ],
)
def test_what_is_no_label_is_refused_with_the_line_and_the_choices(given: dict[str, Any], says: list[str]) -> None:
    line = 0
    with pytest.raises(ConfigError) as refused:
        line = inspect.currentframe().f_lineno + 1
        genie.mark(**given)
    assert refused.value.where == f"{__file__}:{line}"
    for text in says:
        assert text in str(refused.value)


def test_sessions_take_a_priority_alone() -> None:
    with pytest.raises(ConfigError, match="genie.session.* takes no 'phase'"):
        genie.session(phase="decode")
    with pytest.raises(ConfigError, match="says nothing"):
        genie.session()


def test_the_evidence_is_the_users_own_words() -> None:
    with genie.mark(phase="decode", colocate='a"b\\'):
        line = inspect.currentframe().f_lineno - 1
        (word, _) = marks.in_force()
    assert word is not None
    assert {why.label: (why.source, why.confidence) for why in word.evidence} == {
        "phase": ("user", 1.0),
        "colocation_group": ("user", 1.0),
    }
    text = rf'genie.mark(phase="decode", colocate="a\"b\\") at {__file__}:{line}'
    assert {why.reason for why in word.evidence} == {text}


# --- with ----------------------------------------------------------------------------------------


def test_inner_labels_win_key_by_key() -> None:
    with genie.mark(phase="decode", modality="text"):
        with genie.mark(phase="sampling", role="sampler"):
            assert said() == {"phase": "sampling", "modality": "text", "role": "sampler"}
            word, _ = marks.in_force()
            assert word is not None
            assert sorted(why.label for why in word.evidence) == ["modality", "phase", "role"]
        assert said() == {"phase": "decode", "modality": "text"}
    assert said() == {}


def test_exceptions_end_a_mark() -> None:
    with pytest.raises(ZeroDivisionError), genie.mark(phase="decode"):
        1 / 0  # noqa: B018
    assert said() == {}


def test_a_mark_can_be_used_again_and_within_itself() -> None:
    mine = genie.mark(phase="decode")
    for _ in range(2):
        with mine, genie.mark(phase="prefill"), mine:
            assert said() == {"phase": "decode"}
        assert said() == {}


def test_marks_left_out_of_order() -> None:
    one, two = genie.mark(phase="decode"), genie.mark(modality="text")
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert said() == {"modality": "text"}
    two.__exit__(None, None, None)
    two.__exit__(None, None, None)
    assert said() == {}


def test_sessions_are_outermost() -> None:
    with genie.mark(priority=7), genie.session(priority="interactive"):
        assert said() == {"priority": 7}
    with genie.session(priority="batch"), genie.session(priority="realtime"):
        assert said() == {"priority": 200}
        _, session = marks.in_force()
        assert session is not None
        assert session.evidence[0].reason.startswith('genie.session(priority="realtime") at ')
        with genie.mark(phase="decode"):
            assert said() == {"priority": 200, "phase": "decode"}


# --- threads and tasks ---------------------------------------------------------------------------


def test_a_thread_has_its_own() -> None:
    found: list[dict[str, Any]] = []
    with genie.mark(phase="decode"):
        thread = threading.Thread(target=lambda: found.append(said()))
        thread.start()
        thread.join()
    assert found == [{}]


def test_tasks_do_not_see_each_others() -> None:
    async def task(phase: str, found: list[dict[str, Any]]) -> None:
        with genie.mark(phase=phase):
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(said())

    async def both() -> list[list[dict[str, Any]]]:
        found: list[list[dict[str, Any]]] = [[], []]
        with genie.mark(modality="text"):
            await asyncio.gather(task("decode", found[0]), task("prefill", found[1]))
            assert said() == {"modality": "text"}
            assert await asyncio.to_thread(said) == {"modality": "text"}
        return found

    assert asyncio.run(both()) == [[{"phase": each, "modality": "text"}] * 3 for each in ("decode", "prefill")]


# --- decorators ----------------------------------------------------------------------------------


def test_functions() -> None:
    @genie.mark(phase="sampling")
    def choose(logits: int, *, top: int) -> tuple[int, int, dict[str, Any]]:
        """Chooses."""
        return logits, top, said()

    assert choose(1, top=2) == (1, 2, {"phase": "sampling"})
    assert (choose.__name__, choose.__doc__) == ("choose", "Chooses.")
    assert said() == {}

    class Sampler:
        @genie.session(priority=3)
        def choose(self) -> dict[str, Any]:
            return said()

    assert Sampler().choose() == {"priority": 3}


def test_coroutine_functions() -> None:
    @genie.mark(phase="decode")
    async def step() -> dict[str, Any]:
        await asyncio.sleep(0)
        return said()

    assert inspect.iscoroutinefunction(step)
    assert asyncio.run(step()) == {"phase": "decode"}


def test_generators_are_marked_while_they_run() -> None:
    closed = []

    @genie.mark(phase="decode")
    def tokens() -> Iterator[Any]:
        try:
            given = yield said()
            try:
                yield given, said()
            except KeyError:
                yield "thrown", said()
        finally:
            closed.append(said())
        return "done"

    one = tokens()
    assert next(one) == {"phase": "decode"}
    assert said() == {}
    assert one.send(5) == (5, {"phase": "decode"})
    assert one.throw(KeyError()) == ("thrown", {"phase": "decode"})
    with pytest.raises(StopIteration) as stopped:
        next(one)
    assert stopped.value.value == "done"
    other = tokens()
    next(other)
    other.close()
    assert closed == [{"phase": "decode"}] * 2
    assert said() == {}


def test_what_is_no_function_is_refused() -> None:
    @contextlib.asynccontextmanager
    async def unused() -> AsyncIterator[None]:
        yield

    async def generated() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ConfigError, match="asynchronous generator"):
        genie.mark(phase="decode")(generated)
    with pytest.raises(ConfigError, match="can't mark the class Row"):
        genie.mark(phase="decode")(Row)
    for target in (said, Row, RowFrontend.accepts):
        with pytest.raises(ConfigError, match="can't change the"):
            genie.mark(target, phase="decode")
    with pytest.raises(ConfigError, match=r"can't mark a builtins.int"):
        genie.session(priority=1)(5)


# --- targets -------------------------------------------------------------------------------------


class MarkedRows(RowFrontend):
    """A frontend whose rows can be told where they stay, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[tuple[Row, Semantics]] = []

    def accepts(self, program: object) -> bool:
        return isinstance(program, Row)

    def takes_marks(self, target: object) -> Collection[str]:
        return ("residency", "colocation_group") if isinstance(target, Row) else ()

    def mark(self, target: Row, word: Semantics) -> None:
        self.words.append((target, word))


@pytest.fixture
def frontend(fresh_runtime: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[RowFrontend], None]]:
    """Registers the frontend given, as a plugin would."""
    runtime.forget_frontends()

    def register(its: RowFrontend) -> None:
        genie.register_frontend("rows", lambda settings: its)
        monkeypatch.setenv("GENIE_FRONTEND", "rows")

    yield register
    genie.shutdown()
    registry.unregister("frontend", "rows")
    runtime.forget_frontends()


def test_a_frontend_takes_marks(frontend: Callable[[RowFrontend], None]) -> None:
    rows = MarkedRows()
    frontend(rows)
    row = Row(1, 2)
    assert genie.mark(row, residency="kv_cache") is row
    assert genie.mark(residency="weight", colocate="a")(row) is row
    line = inspect.currentframe().f_lineno - 2
    assert [(target is row, labels(word)) for target, word in rows.words] == [
        (True, {"residency": "kv_cache"}),
        (True, {"residency": "weight", "colocation_group": "a"}),
    ]
    assert rows.words[0][1].evidence[0].reason == f'genie.mark(Row, residency="kv_cache") at {__file__}:{line}'
    with pytest.raises(ConfigError, match=r"can't say 'phase' of a Row\n.*\n.*residency, colocate"):
        genie.mark(row, phase="decode")
    with pytest.raises(ConfigError, match="says nothing"):
        genie.mark(row)
    assert len(rows.words) == 2


def test_a_frontend_that_takes_none(frontend: Callable[[RowFrontend], None]) -> None:
    frontend(RowFrontend())
    with pytest.raises(ConfigError, match=r"can't mark a rows.Row"):
        genie.mark(Row(1), residency="kv_cache")


@pytest.mark.parametrize("target", [5, "text", [1], object()], ids=lambda x: type(x).__name__)
def test_a_target_nobody_knows_is_named(target: object, frontend: Callable[[RowFrontend], None]) -> None:
    frontend(MarkedRows())
    with pytest.raises(ConfigError, match=rf"can't mark a builtins.{type(target).__name__}"):
        genie.mark(target, modality="text")


def test_a_device_may_be_given_itself() -> None:
    gpu = Device(id="gpu7", type="GPU", memory_gb=1, compute_tflops=1)
    assert genie.mark(device=gpu).word().device == "gpu7"
