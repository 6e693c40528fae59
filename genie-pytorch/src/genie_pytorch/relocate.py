"""Graphs of Dynamo's made ready for the recorder: each node says which module and line it is of, and a program of the
host makes its tensors on the device."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._device import _device_constructors

from genie_pytorch import modules, scopes
from genie_pytorch.device import NAME
from genie_pytorch.kinds import keeps_statistics
from genie_pytorch.native import _C

# The code of a GraphModule: whoever called it is the program's line.
_C.ignore_sources_under("<eval_with_key>")

_FRAME = re.compile(r'^ *File "([^"\n]+)", line (\d+)', re.MULTILINE)

Place = Callable[[torch.Tensor], torch.Tensor]


def prepared(gm: GraphModule, device: torch.device | None, place: Place | None) -> GraphModule:
    """A copy of ``gm`` that tells the recorder where its steps are from. With a ``device``, what it does on the CPU it
    does there; ``place`` brings its constants along."""
    graph = copy.deepcopy(gm.graph)
    mine = GraphModule(gm, graph)
    for name, child in gm.named_children():
        if isinstance(child, GraphModule):  # the body of a checkpoint, a branch
            setattr(mine, name, prepared(child, device, place))
    for node in list(graph.nodes):
        if device is not None:
            _move(node, device)
            if node.op == "get_attr" and place is not None:
                _move_constant(mine, str(node.target), place)
    _mark_origins(graph)
    graph.lint()
    mine.recompile()
    return mine


def works_on_host(gm: GraphModule) -> bool:
    """Whether some step makes a tensor on the CPU: a replay would repeat what it was when the graph was traced."""
    return any(
        each.device.type == "cpu"
        for node in gm.graph.nodes
        if node.op in ("call_function", "call_method", "call_module", "get_attr")
        for each in _tensors(node.meta.get("example_value"))
    )


def written_unannounced(gm: GraphModule) -> set[int]:
    """Positions of the inputs that a step writes to without moving their version (running statistics)."""
    position = {node: i for i, node in enumerate(node for node in gm.graph.nodes if node.op == "placeholder")}
    found: set[int] = set()
    for node in gm.graph.nodes:
        if node.op == "call_function" and keeps_statistics(node.target, node.args, node.kwargs):
            for operand in node.all_input_nodes:
                value = operand.meta.get("example_value")
                parameter = isinstance(value, torch.nn.Parameter)
                if operand in position and operand is not node.args[0] and not parameter:
                    found.add(position[operand])
    return found


def output_devices(gm: GraphModule) -> list[torch.device | None]:
    """Where the program expects each of its outputs."""
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    devices: list[torch.device | None] = []
    for each in output.args[0]:
        value = each.meta.get("example_value") if isinstance(each, Node) else None
        devices.append(value.device if isinstance(value, torch.Tensor) else None)
    return devices


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


# --- places


def _move(node: Node, device: torch.device) -> None:
    def moved(value: Any) -> Any:
        if isinstance(value, torch.device):
            return device if value.type == "cpu" else value
        if type(value) in (list, tuple):
            return type(value)(moved(each) for each in value)
        return value

    node.args = tuple(moved(each) for each in node.args)
    node.kwargs = {name: moved(each) for name, each in node.kwargs.items()}
    if isinstance(node.kwargs.get("device"), str) and _means_host(node.kwargs["device"]):
        node.kwargs = {**node.kwargs, "device": device}
    if node.op == "call_method" and node.target == "cpu":
        node.target, node.args = "to", (node.args[0], device)
    elif node.op == "call_method" and node.target == "to":
        node.args = tuple(device if _means_host(each) else each for each in node.args)
    elif node.op == "call_function" and node.target is torch.amp.autocast_mode._enter_autocast:
        node.args = tuple(NAME if _means_host(each) else each for each in node.args)
    elif node.target in _device_constructors() and node.kwargs.get("device") is None:
        node.kwargs = {**node.kwargs, "device": device}


def _means_host(value: Any) -> bool:
    return isinstance(value, str) and value.split(":")[0] == "cpu"


def _move_constant(gm: GraphModule, target: str, place: Place) -> None:
    *path, name = target.split(".")
    owner: Any = gm
    for each in path:
        owner = getattr(owner, each)
    value = getattr(owner, name)
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and not isinstance(value, torch.nn.Parameter):
        if name in owner._buffers:
            owner._buffers[name] = place(value)
        else:
            setattr(owner, name, place(value))


# --- origins


def _mark_origins(graph: torch.fx.Graph) -> None:
    """Steps that tell the recorder module and line where they change, so that running the graph costs no look per
    step."""
    current = (0, 0, 0)
    for node in list(graph.nodes):
        if node.op in ("placeholder", "get_attr"):
            continue
        wanted = (0, 0, 0) if node.op == "output" else (_module_of(node), _source_of(node), _mark_of(node))
        if wanted != current:
            with graph.inserting_before(node):
                graph.call_function(_C.set_origin, wanted)
            current = wanted


def _source_of(node: Node) -> int:
    for file, line in reversed(_FRAME.findall(node.meta.get("stack_trace") or "")):
        if _C.is_user_file(file):
            return int(_C.source_named(f"{file}:{line}"))
    return 0


def _module_of(node: Node) -> int:
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return 0
    path, kind = list(stack.values())[-1]
    return modules.intern(_plain(path), kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2])


def _mark_of(node: Node) -> int:
    """What the user said of the modules around a step."""
    mark = 0
    # Keyed by the module's id, with "@" and a number from its second call on.
    for key in reversed(node.meta.get("nn_module_stack") or {}):
        identity = str(key).partition("@")[0]
        if identity.isdigit():
            mark = scopes.combined(mark, modules.mark_of(int(identity)))
    return mark


def _plain(path: str) -> str:
    """``L['self'].layers.0`` is ``layers.0`` to its user."""
    path = re.sub(r"^L\['\w+'\]\.?", "", path)
    path = re.sub(r"\._modules\['([^']*)'\]|\[['\"]?(\w+)['\"]?\]", lambda m: f".{m[1] or m[2]}", path)
    return path.lstrip(".")
