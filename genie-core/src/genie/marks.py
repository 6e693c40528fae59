"""The user's word: what operators and values are for, said by the program itself. It wins over everything found out.

A mark holds in a *context* of Python's: a thread has one, and each task of asyncio has its own. A thread starts
without marks; ``asyncio.to_thread`` takes them along.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from difflib import get_close_matches
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple, TypeVar, overload

from genie import runtime
from genie.device import Device
from genie.errors import ConfigError
from genie.graph import Evidence, Semantics
from genie.graph.vocabulary import MODALITIES, PHASES, PRIORITIES, RESIDENCIES
from genie.interfaces import TakesMarks

_T = TypeVar("_T")

# What can be said, and the field of Semantics it is.
_FIELDS = {"phase": "phase", "modality": "modality", "residency": "residency", "role": "role"} | {
    "priority": "priority",
    "colocate": "colocation_group",
    "device": "device",
}
_WORDS: Mapping[str, Mapping[str, object]] = {"phase": PHASES, "modality": MODALITIES, "residency": RESIDENCIES}
_LONGEST = 256
_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, functools.partial)


@overload
def mark(target: None = None, /, **labels: str | int | Device) -> Mark: ...
@overload
def mark(target: _T, /, **labels: str | int | Device) -> _T: ...
def mark(target: Any = None, /, **labels: str | int | Device) -> Any:
    """Say what a part of the program is for.

    Labels: ``phase``, ``modality``, ``residency``, ``role``, ``priority``, ``colocate``, and ``device``: the
    device it must run on, or its id.

    >>> with genie.mark(phase="decode"):  # doctest: +SKIP
    ...     model(token)
    >>> @genie.mark(phase="sampling")  # doctest: +SKIP
    ... def choose(logits): ...
    >>> genie.mark(model.vision, modality="vision")  # doctest: +SKIP
    >>> genie.mark(cache, residency="kv_cache")  # doctest: +SKIP

    Without a target it is a context manager and a decorator for functions, coroutine functions and generator
    functions, which are marked while they run. It holds for this thread, or for this task of asyncio. Marks nest:
    the inner one's labels win key by key, the others go on.

    A module is marked for good, with all that is issued inside of calls of it; a tensor's value is marked for its
    life, on the device or, of a host tensor, where a capture takes it (``residency``, ``modality`` and ``colocate``
    only). Both are returned, and may be marked again: keys add up, the later one wins.

    Where several hold, a ``with`` or a decorator wins over modules, the innermost marked module over those around
    it, and :func:`session` yields to all. Distinct marks make distinct plans: use few. No mark changes a result.
    """
    where = _line(sys._getframe(1))
    its = Mark("mark", labels, where)
    if target is None:
        return its
    if isinstance(target, (*_FUNCTIONS, type)):
        raise its.refused(
            f"genie.mark() can't change the {'class' if isinstance(target, type) else 'function'} it is given",
            "decorate functions: genie.mark(…)(function); mark instances of classes",
        )
    if not _placed(target, its):
        raise its.unmarkable(target)
    return target


def session(**labels: str | int) -> Mark:
    """``with genie.session(priority="interactive"):`` – how urgent this thread's work is, where no mark says
    otherwise. A decorator, too. A priority is ``"batch"``, ``"interactive"``, ``"realtime"`` or an integer."""
    return Mark("session", labels, _line(sys._getframe(1)))


class Mark:
    """What :func:`mark` and :func:`session` give. It can be entered again, also while it is in force."""

    def __init__(self, verb: str, labels: Mapping[str, object], where: str) -> None:
        self.verb = verb
        self.where = where
        self.labels = {key: value.id if isinstance(value, Device) else value for key, value in labels.items()}
        known = ("priority",) if verb == "session" else tuple(_FIELDS)
        if not labels:
            raise self.refused(f"genie.{verb}() says nothing", f"it takes {_listed(known)}")
        for key in labels:
            if key not in known:
                raise self.refused(f"genie.{verb}() takes no {key!r}", _suggested(key, known))
        self._fields = {_FIELDS[key]: self._checked(key, value) for key, value in self.labels.items()}
        self._word = self.word()

    def __repr__(self) -> str:
        return self._said("")

    def __enter__(self) -> Mark:
        _enter(self, self._word)
        return self

    def __exit__(self, *_: object) -> None:
        _leave(self)

    def __call__(self, target: _T) -> _T:
        """The function, marked while it runs; the module or tensor, marked for good."""
        if not isinstance(target, _FUNCTIONS):
            if isinstance(target, type):
                raise self.refused(
                    f"genie.{self.verb}() can't mark the class {target.__name__}", "mark its instances or its methods"
                )
            if self.verb == "mark" and _placed(target, self):
                return target
        if not callable(target):
            raise self.unmarkable(target)
        decorated: _T = self._around(target)
        return decorated

    def word(self, target: object = None) -> Semantics:
        """The labels with their evidence; ``target`` is what was marked, if anything was."""
        reason = f"{self._said('' if target is None else type(target).__name__)} at {self.where}"
        evidence = tuple(Evidence(field, "user", reason) for field in sorted(self._fields))
        return Semantics(**self._fields, evidence=evidence)

    def refused(self, message: str, hint: str) -> ConfigError:
        return ConfigError(message, where=self.where, hint=hint)

    def unmarkable(self, target: object) -> ConfigError:
        kind = f"{type(target).__module__}.{type(target).__qualname__}"
        return self.refused(
            f"genie.{self.verb}() can't mark a {kind}",
            "a framework's modules and tensors can be marked, and functions decorated",
        )

    def only(self, fields: frozenset[str], target: object) -> None:
        """Raises unless all labels are of these fields."""
        can = [key for key, field in _FIELDS.items() if field in fields]
        for key in self.labels:
            if key not in can:
                kind = type(target).__name__
                raise self.refused(f"genie.mark() can't say {key!r} of a {kind}", f"of it, it takes {_listed(can)}")

    def _checked(self, key: str, value: object) -> Any:
        if key == "priority":
            if isinstance(value, str) and value in PRIORITIES:
                return PRIORITIES[value]
            if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
                return value
            hint = f"one of {_listed(PRIORITIES)}, or an integer of 64 bits; the higher is served first"
            raise self.refused(f"{value!r} is no {key}", hint)
        words = _WORDS.get(key)
        if words is None:
            if isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable():
                return value
            hint = f"a text of 1 to {_LONGEST} printable characters"
            raise self.refused(f"{_shown(value)} is no value for {key}", hint)
        if isinstance(value, str) and value in words:
            return value
        raise self.refused(f"{_shown(value)} is no {key}", _suggested(value, words))

    def _said(self, target: str) -> str:
        labels = [f"{key}={_quoted(value)}" for key, value in self.labels.items()]
        return f"genie.{self.verb}({', '.join([target, *labels] if target else labels)})"

    def _around(self, function: Any) -> Any:
        if inspect.isasyncgenfunction(function):
            raise self.refused(
                f"genie.{self.verb}() can't mark the asynchronous generator {function.__qualname__}",
                f"write `with genie.{self.verb}(…):` around what it does between its yields",
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return awaited
        if inspect.isgeneratorfunction(function):
            return self._while_it_runs(function)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return called

    def _while_it_runs(self, function: Any) -> Any:
        """A generator function: its caller, between the yields, is not marked."""

        @functools.wraps(function)
        def generated(*args: Any, **kwargs: Any) -> Any:
            generator = function(*args, **kwargs)
            step, given = generator.send, None
            while True:
                with self:
                    try:
                        made = step(given)
                    except StopIteration as stop:
                        return stop.value
                try:
                    given = yield made
                    step = generator.send
                except GeneratorExit:
                    with self:
                        generator.close()
                    raise
                except BaseException as error:
                    step, given = generator.throw, error

        return generated


# --- what is in force ------------------------------------------------------------------------------


class _Scope(NamedTuple):
    mark: Mark
    said: Semantics
    outer: _Scope | None
    word: Semantics | None  # of all marks so far
    session: Semantics | None


_now: ContextVar[_Scope | None] = ContextVar("genie.mark", default=None)
_followers: list[Callable[[], None]] = []


def in_force() -> tuple[Semantics | None, Semantics | None]:
    """What marks and what sessions say in this context. For frontends."""
    scope = _now.get()
    return (None, None) if scope is None else (scope.word, scope.session)


def follow(changed: Callable[[], None]) -> None:
    """For frontends: have ``changed`` called where a mark is entered or left. A switch to another context calls nobody:
    a frontend that keeps what is in force asks again then."""
    _followers.append(changed)


def merged(inner: Semantics | None, outer: Semantics | None) -> Semantics | None:
    """What the inner one says, and of the outer one what the inner is silent about."""
    if inner is None or outer is None or inner == outer:
        return outer if inner is None else inner
    said = {field for field in _FIELDS.values() if getattr(inner, field) is not None}
    fields: dict[str, Any] = {field: getattr(inner if field in said else outer, field) for field in _FIELDS.values()}
    evidence = (*inner.evidence, *(why for why in outer.evidence if why.label not in said))
    return Semantics(**fields, evidence=evidence)


def _enter(its: Mark, said: Semantics) -> None:
    _now.set(_inside(_now.get(), its, said))
    _tell()


def _leave(its: Mark) -> None:
    """Its innermost scope ends, whichever were entered since and go on."""
    above: list[_Scope] = []
    scope = _now.get()
    while scope is not None and scope.mark is not its:
        above.append(scope)
        scope = scope.outer
    if scope is None:
        return  # it was entered in another context
    scope = scope.outer
    for each in reversed(above):
        scope = _inside(scope, each.mark, each.said)
    _now.set(scope)
    _tell()


def _inside(outer: _Scope | None, its: Mark, said: Semantics) -> _Scope:
    word, session = (None, None) if outer is None else (outer.word, outer.session)
    if its.verb == "session":
        return _Scope(its, said, outer, word, merged(said, session))
    return _Scope(its, said, outer, merged(said, word), session)


def _tell() -> None:
    for changed in _followers:
        changed()


# --- targets ---------------------------------------------------------------------------------------


def _placed(target: object, its: Mark) -> bool:
    """Whether a frontend took the mark."""
    frontends = list(runtime.loaded_frontends())
    if not any(frontend.accepts(target) for frontend in frontends):
        try:
            frontends.append(runtime.frontend(program=target))
        except ConfigError:
            return False
    for frontend in frontends:
        if isinstance(frontend, TakesMarks) and (fields := frozenset(frontend.takes_marks(target))):
            its.only(fields, target)
            frontend.mark(target, its.word(target))
            return True
    return False


# --- texts -----------------------------------------------------------------------------------------


def _line(frame: Any) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _quoted(value: object) -> str:
    if not isinstance(value, str):
        return repr(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _listed(words: Any) -> str:
    return ", ".join(words)


def _suggested(given: object, words: Any) -> str:
    close = get_close_matches(given, list(words), 1) if isinstance(given, str) else []
    return f"{f'did you mean {close[0]!r}? ' if close else ''}there are {_listed(words)}"
