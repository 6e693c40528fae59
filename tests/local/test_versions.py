"""Every operator PyTorch has samples of, also as it writes in place: what it wrote has another version after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from local.both import Both
from local.recording import Recording, Unrecordable
from local.stateful import bytes_of, told
from torch.utils._pytree import tree_map

from genie.errors import NodeError

pytest.importorskip("expecttest", reason="PyTorch's samples need expecttest")
from torch.testing._internal.common_methods_invocations import op_db

GROUPS = 12


def variants(op: Any) -> list[Callable[..., Any]]:
    return [each for each in (op.op, op.inplace_variant) if each is not None]


def own(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, tree)


def check(both: Both, call: Callable[..., Any], sample: Any) -> bool:
    """Whether there was anything to be checked."""
    recording = Recording()
    torch.manual_seed(42)
    try:
        with recording:
            call(own(sample.input), *own(sample.args), **own(sample.kwargs))
    except (Unrecordable, RuntimeError, TypeError, ValueError, NotImplementedError):
        return False
    program = recording.program
    handles = [both.put(tensor) for tensor in program.given]
    before = told(both.session)
    data = {(each.id, each.version): bytes_of(both.session, before)[each.id] for each in before.memories}
    both.execute_native(program.graph(), handles)
    try:
        after = told(both.session)
    except NodeError:
        return False
    now = bytes_of(both.session, after)
    both.session.free(handles)
    for memory in after.memories:
        assert data.get((memory.id, memory.version), now[memory.id]) == now[memory.id]
    return True


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
@pytest.mark.filterwarnings("ignore")
def test_no_operator_writes_unseen(both: Both, group: int) -> None:
    missed, checked = [], 0
    for op in op_db[group::GROUPS]:
        if op.name.startswith("jiterator") or "chunked" in op.variant_test_name:
            continue  # compiled for CUDA; operators written in Python
        if not op.supports_dtype(torch.float32, "cpu"):
            continue
        sample = next(iter(op.sample_inputs("cpu", torch.float32, requires_grad=False)), None)
        for call in variants(op) if sample is not None else ():
            try:
                checked += check(both, call, sample)
            except AssertionError:
                missed.append(f"{op.formatted_name} ({getattr(call, '__name__', call)})")
    assert not missed
    assert checked > 20
