"""What a thread recorded, as one graph: a captured region, or what came since its last look."""

from __future__ import annotations

import threading

from genie import api
from genie.graph import Graph
from genie_pytorch import lower, past
from genie_pytorch.native import _C
from genie_pytorch.port import port


class _Region(threading.local):
    devices: tuple[int, ...] = ()  # whose streams keep their history
    open = False


_region = _Region()


def begin() -> None:
    """From now on this thread's looks do not end its graph."""
    _region.devices = _devices()
    _region.open = True
    for device in _region.devices:
        _C.start_history(device)


def end() -> None:
    """The graph stays until something else is recorded."""
    _region.open = False
    for device in _region.devices:
        _C.end_history(device)


def latest_graph() -> Graph | None:
    """The last thing this thread captured: the region it is in or was in; else what it recorded since its last
    look; a program run whole is a graph by itself."""
    recorded = []
    for device in sorted({*_devices(), *_region.devices}):
        sent = _C.history(device)
        pending = _C.pending(device)
        if sent or pending["nodes"]:
            parts = [lower.Execution(port.graph(graph), words, reshaped) for graph, _, _, words, reshaped in sent]
            recorded.append(lower.Recorded(device, parts, pending))
    if not recorded:
        return None
    last = recorded[-1]
    if not _region.open and not last.pending["nodes"] and last.sent[-1].graph.backend_type == "fx":
        recorded = [last._replace(sent=last.sent[-1:])]
    return past.told(recorded)


def _devices() -> tuple[int, ...]:
    """Device indices that may have been recorded on."""
    connected = port.indices()
    known = range(api.device_count()) if connected else ()  # looking at a graph alone must not connect
    return tuple(sorted({*connected, *known, int(_C.current_device())}))


def operation_of(device: int, handle: int, index: int) -> str:
    """The operator that made a value, if it was recorded since the last look; ``""`` otherwise."""
    if handle == 0:
        for operation, _, _, outputs, *_ in _C.pending(device)["nodes"]:
            if index in outputs:
                return str(operation)
        return ""
    for number, outputs, _, words, _ in reversed(_C.history(device)):
        if words[0] <= handle < words[0] + len(outputs):
            graph = port.graph(number)
            value = graph.outputs[handle - words[0]]
            return next((node.operation for node in graph.steps if value in node.outputs), "")
    return ""
