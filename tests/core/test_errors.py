from __future__ import annotations

import ast
import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest

from genie import errors
from genie.errors import BackendError, GenieError, OutOfMemory, RemoteOpError, Stage
from genie.wire import messages

ROOT = Path(__file__).parents[2]

CLASSES = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, GenieError)]


def test_text_says_what_where_and_what_to_do():
    error = errors.ConfigError("port must be a number", where="genie.toml", hint="write port = 8888")
    assert str(error) == "port must be a number\n  where: genie.toml\n  hint: write port = 8888"
    assert str(errors.ConfigError("short")) == "short"


def test_operator_errors_say_which_operator_and_which_line():
    error = RemoteOpError(
        "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
        op="aten::mm",
        plan=7,
        step=3,
        kind="RuntimeError",
        device="gpu0",
        source="train.py:12",
    )
    assert str(error) == (
        "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)\n"
        "  operator: aten::mm, step 3 of plan 7 on gpu0 (RuntimeError)\n"
        "  issued at: train.py:12"
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        raise error


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (errors.ConfigError, ValueError),
        (errors.PluginNotFound, LookupError),
        (errors.TorchMismatch, ImportError),
        (errors.UnsupportedOperation, NotImplementedError),
        (errors.GraphError, ValueError),
        (errors.PlanError, ValueError),
        (errors.CodecError, ValueError),
        (errors.BackendUnavailable, ConnectionError),
        (errors.ConnectionLost, ConnectionError),
        (errors.DeadlineExceeded, TimeoutError),
        (errors.RemoteOpError, RuntimeError),
        (errors.OutOfMemory, MemoryError),
        (errors.SessionClosed, RuntimeError),
    ],
)
def test_builtin_handlers_catch_what_users_expect(cls, base):
    with pytest.raises(base):
        raise cls("no")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_errors_survive_processes_and_copies(cls):
    error = cls("what", where="there", hint="do")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert (twin.message, twin.where, twin.hint, str(twin)) == ("what", "there", "do", str(error))
    oom = pickle.loads(pickle.dumps(OutOfMemory("x", op="aten::mm", step=2)))
    assert (oom.op, oom.step) == ("aten::mm", 2)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_our_errors_are_told_from_the_peers(cls):
    assert cls.peer == issubclass(cls, BackendError)


def test_the_tree_in_the_docstring_is_the_tree():
    drawn: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"( {4}[│ ]*(?:[├└]── )?)([A-Z]\w+)", line)
        if not found:
            continue
        depth, name = len(found[1]), found[2]
        stack = [(at, above) for at, above in stack if at < depth]
        if name in vars(errors):
            drawn[name] = stack[-1][1] if stack else "Exception"
            stack.append((depth, name))
    assert drawn == {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}


def test_every_deadline_names_its_stage():
    sources = [path for path in ROOT.glob("genie-*/src/**/*.py") if path.name != "errors.py"]
    calls = [
        (path, call)
        for path in sources
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "DeadlineExceeded"
    ]
    assert len(calls) > 10
    unnamed = [f"{path}:{call.lineno}" for path, call in calls if "stage" not in {word.arg for word in call.keywords}]
    assert unnamed == []


def test_a_deadline_on_its_way_home():
    error = errors.DeadlineExceeded("late", stage=Stage.SEND, seconds=3.0, setting="timeout", where="n", hint="h")
    assert str(error) == "late\n  stage: send, 3 s (by `timeout`)\n  where: n\n  hint: h"
    back = messages.get_error(messages.put_error(error), "node")
    assert isinstance(back, errors.DeadlineExceeded)
    assert (str(back), back.stage, back.seconds, back.setting) == (str(error), error.stage, 3.0, "timeout")
    for cls in (errors.Cancelled, errors.ExecutionTimedOut):
        told = messages.get_error(messages.put_error(cls("x", op="aten::mm", step=2, plan=1, source="a.py:1")), "node")
        assert type(told) is cls
        assert (told.op, told.step, told.plan, told.source) == ("aten::mm", 2, 1, "a.py:1")
