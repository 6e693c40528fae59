"""``genie_jax.remote``: what ``jax.jit`` is, on a device of Genie's."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from itertools import count, repeat
from operator import attrgetter
from typing import Any

import attrs
import jax
import numpy as np
from jax._src import config as jax_config
from jax._src import core as jax_core
from jax.extend import core

from genie import api, latest, runtime, telemetry, tracing
from genie.errors import CaptureError, GenieError, UnsupportedOperation
from genie.graph import Graph, with_artifacts
from genie_jax import inside
from genie_jax.arrays import RemoteArray
from genie_jax.artifact import artifacts, checked
from genie_jax.device import Loaded, Place, place_of
from genie_jax.kinds import Kind, kind, kind_of
from genie_jax.translate import to_graph

_Static = int | Sequence[int]


def remote(
    function: Callable[..., Any] | None = None,
    *,
    device: int | None = None,
    backend: str | None = None,
    donate_argnums: _Static = (),
    static_argnums: _Static = (),
    engine: str | None = None,
) -> Any:
    """``function``, computed on a device of Genie's as ``jax.jit`` computes it here. Also a decorator.

    Arguments are pytrees of arrays and numbers, as for ``jax.jit``, and those of ``static_argnums`` hashable values
    of any sort. What it gives are pytrees of :class:`genie_jax.RemoteArray`, or of JAX's own arrays where JAX
    transforms the call (inside ``jit``, under ``grad``, under ``vmap``). Arrays of arguments in ``donate_argnums`` are
    the program's: they must not be used again. ``device`` is an index of :func:`genie.devices`, ``backend`` a name as
    for :func:`genie.run`; by default, programs run where those do that name neither. ``engine`` says what runs it:
    ``aten`` its operators, ``xla`` what XLA makes of it, ``auto`` what is estimated to be faster; by default the
    setting ``engine``.

    >>> step = genie_jax.remote(train_step, donate_argnums=(0,))  # doctest: +SKIP
    """
    if function is None:
        return functools.partial(
            remote,
            device=device,
            backend=backend,
            donate_argnums=donate_argnums,
            static_argnums=static_argnums,
            engine=engine,
        )
    where = functools.partial(_place, device, backend)
    return Remote(function, where, donate_argnums, static_argnums, None if engine is None else checked(engine))


def _place(device: int | None, backend: str | None) -> Place:
    return place_of(api.engine(device, backend=backend))


@attrs.frozen
class _Program:
    """One signature of a function, translated and loaded."""

    place: Place
    loaded: Loaded
    graph: Graph
    constants: tuple[RemoteArray, ...]
    tree: Any  # of the results
    kinds: tuple[Kind, ...]  # of the results
    donated: tuple[int, ...]  # positions among the leaves
    given: tuple[bool, ...]  # for each leaf, whether it is donated


class Remote:
    """What :func:`remote` gives."""

    def __init__(
        self,
        function: Callable[..., Any],
        where: Callable[[], Place],
        donate: _Static,
        static: _Static,
        engine: str | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.where = where
        self._engine = engine
        self._function = function
        self._static = (static,) if isinstance(static, int) else tuple(static)
        self._static_names = _names(function, self._static)
        self._jitted = jax.jit(function, donate_argnums=donate, static_argnums=static)
        self._programs: dict[Any, _Program] = {}
        self._inside: dict[Any, Any] = {}
        self._runs = inside.Runs(self._runner)
        self._lock = threading.RLock()
        self.latest: Graph | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with tracing.call("genie.call", program=getattr(self, "__name__", "jax")):
            return self._call(args, kwargs)

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        return self if owner is None else functools.partial(self, owner)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        dynamic, named = args, kwargs
        statics: tuple[Any, ...] = ()
        if self._static:
            places = self._static_places(len(args))
            # 1, 1.0 and True are equal, but do not mean the same.
            statics = tuple((i, type(args[i]), args[i]) for i in sorted(places))
            statics += tuple((name, type(kwargs[name]), kwargs[name]) for name in self._static_names if name in kwargs)
            dynamic = tuple(each for i, each in enumerate(args) if i not in places)
            named = {name: each for name, each in kwargs.items() if name not in self._static_names}
        leaves, tree = jax.tree_util.tree_flatten((dynamic, named))
        place = self.where()
        slots = list(leaves)
        kept = place.kept
        for position, leaf in enumerate(leaves):
            if type(leaf) is not RemoteArray:
                known = kept.get(id(leaf))
                if known is None or known.of() is not leaf or leaf.is_deleted():
                    if isinstance(leaf, jax.core.Tracer):
                        return self._transformed(args, kwargs, leaves, tree, statics)
                    slots[position] = _Here(leaf)
                else:
                    slots[position] = known
        key = (place, tree, statics, _context(), tuple(map(_KIND, slots)))
        passing: list[int] = []
        try:
            program = self._known(key)
            if program is None:
                with self._lock:
                    program = self._known(key)
                    if program is None:
                        program = self._prepare(place, args, kwargs, slots, passing)
                        self._programs = {k: v for k, v in self._programs.items() if not v.place.closed}
                        self._programs[key] = program
            return self._run(program, leaves, slots, passing)
        finally:
            for handle in passing:
                place.free(handle)

    def _known(self, key: Any) -> _Program | None:
        try:
            return self._programs.get(key)
        except TypeError as error:
            raise CaptureError(
                f"an argument of static_argnums is not hashable: {error}", hint="give a tuple, a string, a number …"
            ) from error

    def _static_places(self, count: int) -> frozenset[int]:
        return frozenset(i + count if i < 0 else i for i in self._static) & frozenset(range(count))

    def _run(self, program: _Program, leaves: Sequence[Any], slots: Sequence[Any], passing: list[int]) -> Any:
        place, donated = program.place, program.donated
        if donated:
            _check_given_once(leaves, donated)
        sent: dict[int, int] = {}
        if set(map(_HOME, slots)) != {place}:  # what is not there yet; this may wait for another device
            sent = {
                position: slot.handle(place, passing, given)
                for position, (slot, given) in enumerate(zip(slots, program.given, strict=True))
                if slot._home is not place
            }
        with place.lock:  # a thread that donates what another one gives: to one of them it is gone
            if not sent and set(map(_HOME, slots)) == {place}:
                handles = list(map(_HANDLE, slots))
            else:
                handles = [
                    sent[position] if position in sent else slot.handle(place, passing, given)
                    for position, (slot, given) in enumerate(zip(slots, program.given, strict=True))
                ]
            try:
                first = place.run(program.loaded, [*handles, *map(_HANDLE, program.constants)])
            except GenieError:  # it was not run
                raise
            except BaseException:  # interrupted, it may have been
                for position in donated:
                    place.forget(leaves[position])
                    if type(leaves[position]) is RemoteArray:
                        leaves[position].donate(place)
                    place.free(handles[position])
                raise
            for position in donated:
                _gave(place, leaves[position])
        if donated and passing:
            taken = {handles[position] for position in donated}
            passing[:] = (handle for handle in passing if handle not in taken)
        self.latest = program.graph
        latest.captured(program.graph)
        results = list(map(RemoteArray, repeat(place), count(first), program.kinds))
        return jax.tree_util.tree_unflatten(program.tree, results)

    def traced(self, args: Any, kwargs: Any) -> Any:
        """The program of JAX's, for arguments like these."""
        fixed = self._static_places(len(args)) if self._static else ()
        shaped = [each if i in fixed else jax.tree_util.tree_map(_shaped, each) for i, each in enumerate(args)]
        named = {
            name: each if name in self._static_names else jax.tree_util.tree_map(_shaped, each)
            for name, each in kwargs.items()
        }
        try:
            traced = self._jitted.trace(*shaped, **named)
        except jax.errors.UnexpectedTracerError as error:
            raise CaptureError(
                f"a value of another trace of JAX's was used in a remote function: {str(error).splitlines()[0]}",
                hint=_ARGUMENTS,
            ) from error
        if len(traced.jaxpr.in_avals) != len(jax.tree_util.tree_leaves(traced.args_info)):
            raise CaptureError("a remote function uses a value of another trace of JAX's", hint=_ARGUMENTS)
        return traced

    def _prepare(self, place: Place, args: Any, kwargs: Any, slots: Sequence[Any], passing: list[int]) -> _Program:
        with tracing.span("genie.capture"):
            traced = self.traced(args, kwargs)
            information = jax.tree_util.tree_leaves(traced.args_info)
            given = tuple(bool(each.donated) for each in information)
            name = getattr(self, "__name__", "")
            paths = jax.tree_util.tree_flatten_with_path(traced.args_info)[0]
            origins = [(jax.tree_util.keystr(path, simple=True, separator="."), "input") for path, _ in paths]
            graph, constants = to_graph(traced.jaxpr, origins, name, given)
            engine = self._engine or checked(runtime.current().settings.engine)
            forms = artifacts(traced.jaxpr, constants, engine, place.engine.device.engines)
            graph = with_artifacts(graph, forms) if forms else graph
        held = tuple(RemoteArray(place, place.put(each, shared=True), _CONSTANT) for each in constants)
        handles = [slot.handle(place, passing, gives) for slot, gives in zip(slots, given, strict=True)]
        loaded = place.load(graph, [*handles, *map(_HANDLE, held)])
        telemetry.counters.add("programs")
        return _Program(
            place=place,
            loaded=loaded,
            graph=graph,
            constants=held,
            tree=jax.tree_util.tree_structure(traced.out_info),
            kinds=tuple(kind_of(aval) for aval in traced.jaxpr.out_avals),
            donated=tuple(i for i, each in enumerate(given) if each),
            given=given,
        )

    def _runner(self, program: Any, name: str) -> Callable[..., list[np.ndarray]]:
        """See :mod:`genie_jax.inside`."""
        function = core.jaxpr_as_fun(program)
        function.__name__ = name
        called = Remote(function, self.where, (), (), self._engine)
        return lambda *operands: [np.asarray(each) for each in called(*map(np.asarray, operands))]

    def _transformed(self, args: Any, kwargs: Any, leaves: Sequence[Any], tree: Any, statics: Any) -> Any:
        """The call within a transformation of JAX's: as one operation that JAX can differentiate and batch."""
        here = [jax.numpy.asarray(leaf) if isinstance(leaf, RemoteArray) else leaf for leaf in leaves]
        key = (tree, statics, _context(), tuple(map(_signature, leaves)))
        with self._lock:
            known = self._inside.get(key)
            if known is None:
                traced = self.traced(args, kwargs)
                structure = jax.tree_util.tree_structure(traced.out_info)
                known = self._inside[key] = (
                    inside.operation(traced.jaxpr, self._runs, getattr(self, "__name__", "jax")),
                    structure,
                )
        operation, structure = known
        return jax.tree_util.tree_unflatten(structure, operation(*here))


def _names(function: Callable[..., Any], positions: Sequence[int]) -> frozenset[str]:
    """The arguments at ``positions`` as they are given by name, which ``jax.jit`` takes for static, too."""
    try:
        parameters = inspect.signature(function).parameters.values() if positions else ()
    except (TypeError, ValueError):  # of what is not written in Python there is none
        return frozenset()
    return frozenset(
        each.name for i, each in enumerate(parameters) if i in positions and each.kind is each.POSITIONAL_OR_KEYWORD
    )


def _context() -> Any:
    """The settings of JAX's that a trace may depend on (``jax_enable_x64``, ``jax_threefry_partitionable`` …)."""
    context = jax_config.trace_context()
    axes = context[-1]
    if isinstance(axes, jax_core.AxisEnv):  # of ``vmap``, another object each time
        return context[:-1], tuple(axes.axis_sizes.items())
    return context


_ARGUMENTS = "give it to the function as an argument, and return what it computes"
_CONSTANT = kind_of(jax.core.ShapedArray((), np.dtype(np.float32)))  # of what nobody sees


def _signature(leaf: Any) -> Any:
    """What a translation depends on."""
    if isinstance(leaf, RemoteArray):
        return leaf.kind
    if isinstance(leaf, jax.Array):  # and tracers
        return kind_of(leaf.aval)
    if isinstance(leaf, np.ndarray | np.generic):
        return kind(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype), False)  # what JAX makes of it
    return type(leaf)


def _shaped(leaf: Any) -> Any:
    """What JAX traces in place of an argument."""
    if isinstance(leaf, RemoteArray):
        dtype = leaf.dtype
        if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended) and jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise CaptureError(
                f"an array of {dtype} was computed with JAX's jax_enable_x64, which is off now",
                hint="turn it on again, or convert the array while it is on",
            )
        return jax.ShapeDtypeStruct(leaf.shape, dtype, weak_type=leaf.weak_type)
    if isinstance(leaf, jax.core.Tracer):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.aval.weak_type)
    if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        return leaf
    raise UnsupportedOperation(
        f"an argument of type {type(leaf).__name__} is no array", hint="name it in static_argnums, or leave it out"
    )


class _Here:
    """An argument that is here, and goes to the device with a call."""

    __slots__ = ("_handle", "_home", "_leaf", "kind")

    def __init__(self, leaf: Any) -> None:
        self.kind = _signature(leaf)
        self._leaf = leaf
        self._handle: int | None = None
        self._home = None

    def handle(self, place: Place, passing: list[int], given: bool) -> int:
        """Once per call. An array of JAX's that the program does not take is kept there; others are added to
        ``passing``."""
        if self._handle is None:
            leaf = self._leaf
            if isinstance(leaf, jax.Array):
                if leaf.is_deleted():
                    raise UnsupportedOperation(
                        f"an array of {leaf.dtype}{list(leaf.shape)} was donated, and is used again",
                        hint="use what that program gave instead, or do not donate it",
                    )
                if not given:
                    self._handle = place.keep(leaf).handle(place, passing, given)
                    return self._handle
            elif not isinstance(leaf, np.ndarray) or jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
                leaf = jax.numpy.asarray(leaf)
            self._handle = place.put_array(leaf)
            passing.append(self._handle)
        return self._handle


_KIND, _HOME, _HANDLE = attrgetter("kind"), attrgetter("_home"), attrgetter("_handle")


def _check_given_once(leaves: Sequence[Any], donated: Sequence[int]) -> None:
    if len(set(map(id, leaves))) == len(leaves):
        return
    others = list(map(id, leaves))
    for position in donated:
        if others.count(others[position]) > 1 and isinstance(leaves[position], RemoteArray | jax.Array):
            raise UnsupportedOperation(
                "an array is donated and given as another argument, too", hint="donate a copy of it, or do not"
            )


def _gave(place: Place, leaf: Any) -> None:
    if type(leaf) is RemoteArray:
        leaf.donate(place)
    elif isinstance(leaf, jax.Array):
        place.forget(leaf)
        leaf.delete()
