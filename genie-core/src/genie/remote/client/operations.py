"""Single remote operators, for people who want no graph."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

from genie import config
from genie.bindings import Prediction, parameters
from genie.device import Device
from genie.errors import UnsupportedOperation
from genie.graph import Arg, Const, Graph, Input, Many, Node, Ref, TensorSpec
from genie.host import HostValue, host_value
from genie.interfaces import Session, Transport
from genie.plugins import registry
from genie.remote.client.access import Access
from genie.remote.client.backend import RemoteBackend
from genie.remote.greeting import Wish
from genie.schedule import Scheduler


class _Link:
    def __init__(self, backend: RemoteBackend, device: Device) -> None:
        self.backend = backend
        self.device = device
        self.session: Session = backend.connect(device)
        self.handles = itertools.count(1)
        self.plans: dict[Graph, tuple[int, Prediction]] = {}


class RemoteClient:
    """Runs one operator at a time on a node, operands and results in one message each way.

    >>> with RemoteClient() as client:  # doctest: +SKIP
    ...     (product,) = client.execute_operation("aten::matmul", [x, y], node="10.0.0.10:8888")
    ...     numpy.asarray(product)
    """

    def __init__(self, *, transport: Transport | None = None, timeout: float | None = None) -> None:
        settings = config.resolve().settings
        self._timeout = settings.timeout if timeout is None else timeout
        self._connect_timeout = settings.connect_timeout
        self._wish = Wish(settings.admission_seconds, settings.priority)
        self._transport: Transport = registry.make("transport", "tcp", settings) if transport is None else transport
        self._access = Access.from_settings(settings, self._transport)
        self._links: dict[tuple[str, int], _Link] = {}
        self._lock = threading.Lock()

    def execute_operation(
        self, operation: str, args: Sequence[object], *, node: str, device: int = 0, outputs: int = 1
    ) -> tuple[HostValue, ...]:
        """``operation`` is ``namespace::name`` or ``namespace::name.overload``; ``args`` are in the order of the
        operator's schema: arrays and tensors as values, numbers, ``None``, text (a dtype where one is due) and lists
        as they are. ``outputs`` is how many tensors the operator returns."""
        name, _, overload = operation.partition(".")
        values: list[HostValue] = []
        arguments = tuple(_argument(arg, values) for arg in args)
        specs = [value.spec for value in values]
        made = range(len(values), len(values) + outputs)
        graph = Graph(
            # The shape of a result is for the node to say.
            values=(*specs, *(TensorSpec((), specs[0].dtype if specs else "float32") for _ in made)),
            inputs=tuple(Input(index, donated=True) for index in range(len(values))),
            steps=(Node(0, name, overload, arguments, tuple(made)),),
            outputs=tuple(made),
        )
        with self._lock:
            link = self._link(node, device)
            number, prediction = self._plan(link, graph)
            handles = [next(link.handles) for _ in values]
            results = [next(link.handles) for _ in made]
            for handle, value in zip(handles, values, strict=True):
                link.session.upload(handle, value.spec, value.data)
            words = [results[0] if results else 0, *handles, *parameters(graph)]
            link.session.execute(number, prediction.encode(words), more=bool(results))
            try:
                return tuple(_fetched(link.session, handle) for handle in results)
            finally:
                link.session.free([*handles, *results])

    def stats(self, node: str, device: int = 0) -> Mapping[str, int]:
        with self._lock:
            return self._link(node, device).session.stats()

    def close(self) -> None:
        with self._lock:
            links, self._links = self._links, {}
        for link in links.values():
            link.backend.close()

    def __enter__(self) -> RemoteClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _link(self, node: str, index: int) -> _Link:
        link = self._links.get((node, index))
        if link is None or getattr(link.session, "closed", False):
            backend = RemoteBackend(
                "tcp",
                self._transport,
                (node,),
                timeout=self._timeout,
                connect_timeout=self._connect_timeout,
                access=self._access,
                wish=self._wish,
            )
            devices = backend.devices()
            if not 0 <= index < len(devices):
                raise UnsupportedOperation(f"{node} has no device {index}, only {len(devices)}")
            link = self._links[node, index] = _Link(backend, devices[index])
        return link

    def _plan(self, link: _Link, graph: Graph) -> tuple[int, Prediction]:
        known = link.plans.get(graph)
        if known is None:
            number = link.session.load(Scheduler(devices=(link.device,)).schedule(graph))
            prediction = Prediction(len(graph.inputs), parameters(graph))
            known = link.plans[graph] = (number, prediction)
        return known


def _fetched(session: Session, handle: int) -> HostValue:
    value = session.fetch(handle)
    return HostValue(value.spec, value.data)


def _argument(arg: object, values: list[HostValue]) -> Arg:
    if arg is None or isinstance(arg, bool | int | float | str | Const):
        return arg
    if isinstance(arg, list | tuple):
        return Many(tuple(_argument(item, values) for item in arg))
    values.append(host_value(arg))
    return Ref(len(values) - 1)
