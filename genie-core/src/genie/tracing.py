"""Spans, when the program wants them: by the setting ``trace_ratio``, through OpenTelemetry's API.

Without the setting nothing is imported, and a span costs a call. What becomes of spans is for the program to say, as
with any library: it sets up OpenTelemetry's SDK (or runs under ``opentelemetry-instrument``); we only make them.

A span is made where the program's own span is recorded; where there is none, a call of ours begins a trace of its own
for a share of the calls. The choice is made once: what is below a call that was left out is left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from genie.errors import ConfigError

_NOTHING = nullcontext()
_left_out: ContextVar[bool] = ContextVar("genie_left_out", default=False)
_dice = random.Random()  # of our own: a program's seeded numbers stay the same
_api: Any = None  # opentelemetry.trace
_tracer: Any = None
_ratio = 0.0


def configure(ratio: float) -> None:
    """Make spans, of ``ratio`` of the calls that are in no trace; 0 makes none. Raises :class:`ConfigError` where
    OpenTelemetry is not installed."""
    global _api, _tracer, _ratio
    if ratio <= 0:
        _tracer, _ratio = None, 0.0
        return
    try:
        api = import_module("opentelemetry.trace")
    except ImportError as error:
        raise ConfigError(
            "setting 'trace_ratio' asks for traces, and OpenTelemetry is not installed",
            where="trace_ratio",
            hint='pip install "genie-core[tracing]", or set it to 0',
        ) from error
    _api, _ratio = api, ratio
    _tracer = api.get_tracer("genie")


def enabled() -> bool:
    return _tracer is not None


def tracer() -> Any:
    """OpenTelemetry's, or ``None``."""
    return _tracer


def recording() -> bool:
    """Whether what happens now is in a trace that is recorded."""
    return _tracer is not None and bool(_api.get_current_span().is_recording())


def span(name: str, **attributes: str | int | float) -> AbstractContextManager[Any]:
    """A part of the trace there is, if there is one."""
    if _tracer is None or not _api.get_current_span().is_recording():
        return _NOTHING
    made: AbstractContextManager[Any] = _tracer.start_as_current_span(name, attributes=attributes)
    return made


def call(name: str, **attributes: str | int | float) -> AbstractContextManager[Any]:
    """A call of the program's: a part of its trace, or a trace of its own, or nothing."""
    if _tracer is None:
        return _NOTHING
    current = _api.get_current_span()
    if current.get_span_context().is_valid:
        return span(name, **attributes)
    if _left_out.get():
        return _NOTHING
    if _dice.random() >= _ratio:
        return _leaving_out()
    made: AbstractContextManager[Any] = _tracer.start_as_current_span(name, attributes=attributes)
    return made


def begins() -> bool:
    """Whether :func:`call` would make a span now; for what makes no calls below it, which asks once for all of it."""
    if _tracer is None:
        return False
    current = _api.get_current_span()
    if current.get_span_context().is_valid:
        return bool(current.is_recording())
    return not _left_out.get() and _dice.random() < _ratio


def begin(name: str, facts: Mapping[str, str | int | float]) -> AbstractContextManager[Any]:
    """The span, after :func:`begins` or :func:`recording` has said yes."""
    if _tracer is None:
        return _NOTHING
    made: AbstractContextManager[Any] = _tracer.start_as_current_span(name, attributes=facts)
    return made


@contextmanager
def _leaving_out() -> Iterator[None]:
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def context() -> Any:
    """OpenTelemetry's context of the current span; ``None`` where nothing is recorded."""
    if _tracer is None:
        return None
    current = _api.get_current_span()
    return current.get_span_context() if current.is_recording() else None
