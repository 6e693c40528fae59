"""Programs captured whole: Dynamo finds the graph, the recorder records it once, the plan runs it from then on."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from genie import telemetry, tracing
from genie_pytorch import modules
from genie_pytorch.capture import Capture, is_capturing, suspended
from genie_pytorch.device import NAME
from genie_pytorch.lift import Lifts, host_autocast, on_device
from genie_pytorch.native import _C
from genie_pytorch.port import port
from genie_pytorch.relocate import output_devices, prepared, works_on_host, written_unannounced

_T = TypeVar("_T")
Tensor = torch.Tensor

log = telemetry.get_logger("genie.pytorch")

_LARGEST_RECIPES = 256  # of one graph whose sizes vary
_MOST_ATTEMPTS = 3  # to trace one signature: the first may ask the node what an operator gives, as later ones need not

# What Dynamo keeps of a program it keeps by backend, and counts: without this, a program compiled anew after each
# genie.shutdown() would come to its limit. PyTorch 2.13 has it.
_APART: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
)

_away = threading.local()  # .depth: within launch()


def launch(compiled: Callable[..., _T], *args: Any, **kwargs: Any) -> Callable[[], _T]:
    """Call what :func:`compile` gave, without waiting for its results: those are had by calling what is returned."""
    _away.depth = getattr(_away, "depth", 0) + 1
    try:
        result = compiled(*args, **kwargs)
    finally:
        _away.depth -= 1
    if isinstance(compiled, Compiled) and compiled.lives_there(args, kwargs):
        return lambda: result
    for each in pytree.tree_leaves(result):
        if isinstance(each, Tensor) and on_device(each):
            index, handle = _C.handle_of(each)
            port.expect(index, handle, each.nbytes)
    return lambda: _home(result)


def _stays() -> bool:
    return getattr(_away, "depth", 0) > 0


def _home(result: _T) -> _T:
    brought: _T = pytree.tree_map_only(Tensor, lambda tensor: tensor.cpu() if on_device(tensor) else tensor, result)
    return brought


def compile(program: Callable[..., _T], index: int) -> Callable[..., _T]:
    """``program`` captured whole and run on device ``index``; recorded as it goes where Dynamo can't capture it.

    It answers as ``program`` does: tensors of the CPU give tensors of the CPU.
    """
    return Compiled(program, index)


def dynamo_backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """``torch.compile(model, backend="genie")``."""
    return Runner(gm, torch.device(NAME, _C.current_device()), Lifts())


class Compiled:
    """What :func:`compile` gives. ``program`` is the original."""

    def __init__(self, program: Callable[..., Any], index: int) -> None:
        self.program = program
        self.recorded = False  # Dynamo gave up: it runs as it is, under a capture
        self._device = torch.device(NAME, index)
        self._lifts = Lifts()
        self._lock = threading.Lock()
        self._whole: Callable[..., Any] | None = None
        owner = getattr(program, "__self__", program)
        self._module = owner if isinstance(owner, torch.nn.Module) else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with tracing.call("genie.call", program=type(self.program).__name__):
            return self._call(args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.recorded:
            return self._record(args, kwargs)
        whole = self._whole if self._whole is not None else self._prepare()
        from torch._dynamo import exc  # a second to import: only for those who compile

        try:
            with suspended():
                return whole(*args, **kwargs)
        except exc.FailOnRecompileLimitHit:
            return self._record(args, kwargs)
        except exc.TorchDynamoException as error:
            # Raised while Dynamo reads the program, before any of it ran.
            self.recorded = True
            reason = str(error).partition("\n")[0]
            log.info("not captured whole, recorded as it runs", program=type(self.program).__name__, reason=reason)
        return self._record(args, kwargs)

    def _prepare(self) -> Callable[..., Any]:
        with self._lock:
            if self._whole is None:
                if self._module is not None:
                    modules.know(self._module)

                def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
                    return Runner(gm, self._device, self._lifts)

                self._whole = torch.compile(self.program, backend=backend, fullgraph=True, **_APART)
            return self._whole

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with Capture(self._device, self._lifts):
            result = self.program(*args, **kwargs)
        return result if _stays() or self.lives_there(args, kwargs) else _home(result)

    def lives_there(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the program is about tensors on the device, and would answer with such by itself."""
        tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if self._module is not None:
            tensors += self._module.parameters()
        return any(on_device(each) for each in tensors)


class _Recipe:
    """How one signature is run: by its trace, or (None) step by step."""

    __slots__ = ("attempts", "constants", "positions", "trace", "written")

    def __init__(self, outputs: Sequence[Any], written: tuple[int, ...]) -> None:
        self.positions = tuple(i for i, each in enumerate(outputs) if isinstance(each, Tensor))
        self.constants = [None if isinstance(each, Tensor) else each for each in outputs]
        self.written = written  # positions of host inputs the graph writes to
        self.trace: Any = None
        self.attempts = 0  # to trace it


class Runner:
    """Runs one graph of Dynamo's, whose guards see to it that shapes, dtypes, places and flags are those of the first
    call; only numbers among the inputs vary."""

    def __init__(self, gm: GraphModule, device: torch.device, lifts: Lifts) -> None:
        self._gm = gm
        self._device = device
        self._lifts = lifts
        self._lock = threading.RLock()
        self._module: GraphModule | None = None
        self._tensors: tuple[int, ...] = ()  # positions of tensors among the inputs
        self._numbers: tuple[int, ...] = ()  # of all others
        self._hosts: tuple[int, ...] = ()  # of tensors to lift
        self._brings_home: list[bool] = []  # by output: the program expects it on the host
        self._traceable = True
        self._marks_changed = 0  # as the steps of `_module` have it
        self._recipes: dict[Any, _Recipe] = {}

    def __call__(self, *inputs: Any) -> Any:
        if is_capturing():
            with suspended():
                return self._run(inputs)
        return self._run(inputs)

    def _run(self, inputs: tuple[Any, ...]) -> Any:
        module = self._module
        if module is None or self._marks_changed != modules.marks_changed():
            module = self._prepare(inputs)
        if torch.is_grad_enabled() and any(inputs[i].requires_grad for i in self._tensors):
            there = self._lifted(inputs)
            versions = [there[i]._version for i in self._hosts]
            outputs = self._step_by_step(module, there)
            recipe = _Recipe(outputs, self._written(there, versions))
            return self._answer(recipe, inputs, there, [outputs[i] for i in recipe.positions])
        with torch.no_grad():
            there = self._lifted(inputs)
            given = [there[i] for i in self._tensors]
            # A trace says what the user said when it was made.
            signature = (_C.current_scope(), _C.marks_of(given), *(inputs[i] for i in self._numbers))
            found = self._recipes.get(signature)
            if found is None or (found.trace is None and found.attempts < _MOST_ATTEMPTS):
                with tracing.span("genie.capture.whole"):
                    return self._traced(module, signature, inputs, there)
            if found.trace is not None:
                made = found.trace.replay(given, any(self._brings_home[i] for i in found.positions))
            else:
                outputs = self._step_by_step(module, there)
                made = [outputs[i] for i in found.positions]
            return self._answer(found, inputs, there, made)

    def _prepare(self, inputs: tuple[Any, ...]) -> GraphModule:
        with self._lock:
            changed = modules.marks_changed()
            if self._module is None or self._marks_changed != changed:
                self._marks_changed = changed
                self._recipes.clear()
                self._tensors = tuple(i for i, each in enumerate(inputs) if isinstance(each, Tensor))
                self._numbers = tuple(i for i, each in enumerate(inputs) if not isinstance(each, Tensor))
                self._hosts = tuple(i for i in self._tensors if not on_device(inputs[i]))
                for i in self._tensors:
                    if on_device(inputs[i]):
                        self._device = inputs[i].device
                        break
                host_program = bool(self._hosts) or not self._tensors
                self._brings_home = [each is not None and each.type == "cpu" for each in output_devices(self._gm)]
                self._traceable = host_program or not works_on_host(self._gm)
                device = self._device if host_program else None
                self._module = prepared(self._gm, device, lambda constant: constant.to(self._device))
            return self._module

    def _traced(self, module: GraphModule, signature: Any, inputs: tuple[Any, ...], there: list[Any]) -> Any:
        index = self._device.index or 0
        given = [there[i] for i in self._tensors]
        versions = [_version(there[i]) for i in self._hosts]
        trace = None
        if self._traceable:
            _C.begin_trace(index, given)
            try:
                outputs = self._step_by_step(module, there)
            except BaseException:
                _C.abandon_trace(index)
                raise
            trace = _C.end_trace(index, given, [each for each in outputs if isinstance(each, Tensor)])
        else:
            outputs = self._step_by_step(module, there)
        recipe = _Recipe(outputs, self._written(there, versions))
        recipe.trace = trace
        with self._lock:
            before = self._recipes.pop(signature, None)
            recipe.attempts = 1 + (before.attempts if before is not None else 0)
            while len(self._recipes) >= _LARGEST_RECIPES:
                del self._recipes[next(iter(self._recipes))]
            self._recipes[signature] = recipe
        return self._answer(recipe, inputs, there, [outputs[i] for i in recipe.positions])

    def _step_by_step(self, module: GraphModule, there: list[Any]) -> Sequence[Any]:
        try:
            with host_autocast():
                outputs: Sequence[Any] = module.forward(*there)
        finally:
            _C.set_origin(0, 0, 0)
        return outputs

    # --- between host and device

    def _lifted(self, inputs: tuple[Any, ...]) -> list[Any]:
        there = list(inputs)
        for i in self._hosts:
            there[i] = self._lifts.lift(inputs[i], self._device)
        return there

    def _written(self, there: list[Any], versions: list[int]) -> tuple[int, ...]:
        silently = written_unannounced(self._gm)
        return tuple(
            i
            for i, version in zip(self._hosts, versions, strict=True)
            if i in silently or _version(there[i]) != version
        )

    def _answer(self, recipe: _Recipe, inputs: tuple[Any, ...], there: list[Any], made: list[Tensor]) -> list[Any]:
        for i in recipe.written:
            self._lifts.bring_home(inputs[i], there[i])
        answer = list(recipe.constants)
        if _stays() or (not self._hosts and not any(self._brings_home)):
            for position, tensor in zip(recipe.positions, made, strict=True):
                answer[position] = tensor
            return answer
        own = {id(there[i]): inputs[i] for i in self._hosts}
        for position, tensor in zip(recipe.positions, made, strict=True):
            mine = own.get(id(tensor))
            if mine is None:
                mine = tensor.cpu() if self._brings_home[position] and on_device(tensor) else tensor
            answer[position] = mine
        return answer


def _version(tensor: Any) -> int:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0
