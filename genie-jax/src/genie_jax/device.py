"""Values and work of JAX programs on one of Genie's devices."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import jax
import numpy as np

from genie import api
from genie.bindings import Prediction, parameters
from genie.errors import Cancelled, ConnectionLost, GenieError, SessionClosed, UnsupportedOperation
from genie.graph import Graph, TensorSpec
from genie.interfaces import Engine, TakesWords
from genie_jax.dtypes import carried, is_key
from genie_jax.kinds import Kind, kind_of

# Handles are the caller's to choose, and PyTorch's programs, which may use the same session, count from 1.
_FIRST_HANDLE = 1 << 62


@attrs.frozen
class Loaded:
    """A plan in the session."""

    number: int
    graph: Graph
    words: tuple[int, ...]  # its parameters


class Kept:
    """A value of the device that is an array of JAX's here, too, for as long as that lives."""

    __slots__ = ("_handle", "_home", "kind", "of")

    def __init__(self, home: Place, handle: int, kind: Kind, of: weakref.ref[Any]) -> None:
        self._home: Place | None = home  # until a program took it
        self._handle = handle
        self.kind = kind
        self.of: Callable[[], Any] = of

    def handle(self, place: Place, passing: list[int], given: bool) -> int:
        if self._home is None:
            raise donated(self.kind)
        return self._handle

    def take(self) -> None:
        self._home = None


def donated(kind: Kind) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"an array of {kind.dtype}{list(kind.shape)} was donated to a remote program, and is used again",
        hint="use what that program gave instead, or do not donate it",
    )


class Place:
    """An engine, as JAX's programs use it. Any thread may call."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.closed = False
        self.lock = threading.RLock()
        self._next = _FIRST_HANDLE
        self._freed: deque[int] = deque()
        self._predictions: dict[int, Prediction] = {}
        self._refused: dict[int, GenieError] = {}
        self._takes_words = isinstance(engine.session, TakesWords)
        self.kept: dict[int, Kept] = {}  # arrays that never change, by identity

    def load(self, graph: Graph, handles: Sequence[int]) -> Loaded:
        """A program that takes what it is given is loaded when the device has said so: refused, it takes nothing."""
        takes = any(entry.donated for entry in graph.inputs)
        with self.lock:
            self._check()
            if takes:
                self._look()  # what went wrong before is not this program's
            number = self.engine.prepare(graph, handles)
            if number in self._refused:
                raise self._refused[number]
            if takes:
                try:
                    self._look()
                except (Cancelled, ConnectionLost):  # which say nothing of the program
                    raise
                except GenieError as error:  # said once, of what is not loaded twice
                    self._refused[number] = error
                    raise
            return Loaded(number, graph, parameters(graph))

    def _look(self) -> None:
        """Raises what went wrong of all that was asked, and is about no value."""
        known = self.put(np.zeros((), np.int8))
        try:
            self.engine.session.describe(known)
        finally:
            self.free(known)

    def run(self, loaded: Loaded, handles: Sequence[int]) -> int:
        """The handle of the first of the plan's outputs; the others' follow."""
        with self.lock:
            self._check()
            self._sweep()
            count = len(loaded.graph.outputs)
            first = self._take(count)
            words = [first, *handles, *loaded.words]
            session: Any = self.engine.session
            try:
                if self._takes_words:
                    session.execute_words(loaded.number, words)
                else:
                    session.execute(loaded.number, self._encoded(loaded, words))
            except BaseException:
                # Interrupted, nobody knows what the node has heard: all of the next words are sent.
                self._predictions.pop(loaded.number, None)
                self._freed.extend(range(first, first + count))
                raise
            return first

    def _take(self, count: int) -> int:
        first, self._next = self._next, self._next + count
        return first

    def _encoded(self, loaded: Loaded, words: Sequence[int]) -> bytes:
        # Programs that are equal share a plan, and with it what the node remembers of the words before.
        known = self._predictions.get(loaded.number)
        if known is not None:
            return known.encode(words)
        known = self._predictions[loaded.number] = Prediction(len(loaded.graph.inputs), loaded.words)
        return known.encode(words, anew=True)

    def put(self, array: np.ndarray, *, shared: bool = False) -> int:
        """Send an array, in the type that carries its own."""
        with self.lock:
            self._check()
            self._sweep()
            handle = self._take(1)
            data = np.ascontiguousarray(array)
            spec = TensorSpec(tuple(array.shape), carried(array.dtype))
            self.engine.session.upload(handle, spec, data.reshape(-1).view(np.uint8).data, shared=shared)
            return handle

    def put_array(self, array: Any, *, shared: bool = False) -> int:
        """The same of an array of JAX's, which may be one of random keys."""
        return self.put(np.asarray(jax.random.key_data(array) if is_key(array.dtype) else array), shared=shared)

    def keep(self, array: Any) -> Kept:
        """Send an array that never changes, as JAX's do not, unless it is there already, and know it again."""
        key = id(array)

        def gone(_: object) -> None:
            known = self.kept.pop(key, None)
            if known is not None:
                self._freed.append(known._handle)

        with self.lock:
            known = self.kept.get(key)
            if known is None or known.of() is not array:
                handle = self.put_array(array, shared=True)
                known = self.kept[key] = Kept(self, handle, kind_of(array.aval), weakref.ref(array, gone))
            return known

    def forget(self, array: Any) -> None:
        """A program took what was kept of an array, if it was."""
        known = self.kept.pop(id(array), None)
        if known is not None:
            known.take()

    def get(self, handle: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        with self.lock:
            self._check()
            made = np.empty(shape, dtype)
            self.engine.session.fetch(
                handle, made.reshape(-1).view(np.uint8).data if made.size else memoryview(bytearray())
            )
            self.engine.looked()
            return made

    def wait(self) -> None:
        with self.lock:
            self._check()
            self.engine.session.synchronize()

    def free(self, handle: int) -> None:
        """Garbage collection may call this at any moment."""
        self._freed.append(handle)

    def _sweep(self) -> None:
        if self._freed and not self.closed:
            self.engine.session.free([self._freed.popleft() for _ in range(len(self._freed))])

    def _check(self) -> None:
        if self.closed:
            raise SessionClosed(
                "this array was on a device before genie.shutdown(), which ended its session",
                hint="compute it again, or look at it (np.asarray) before",
            )


_places: dict[int, Place] = {}
_choosing = threading.Lock()


def place_of(engine: Engine) -> Place:
    """The one of an engine: two would give their values the same handles."""
    known = _places.get(id(engine))
    if known is None or known.engine is not engine or known.closed:
        with _choosing:
            known = _places.get(id(engine))
            if known is None or known.engine is not engine or known.closed:
                known = _places[id(engine)] = Place(engine)
    return known


def _forget() -> None:
    with _choosing:
        for place in _places.values():
            place.closed = True
        _places.clear()


api.on_shutdown(_forget)
