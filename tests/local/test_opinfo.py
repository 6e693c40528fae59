"""PyTorch's own samples of every operator, forward and backward: recorded natively, repeated by the executor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from local.both import Both, bits, name, tensor_of
from local.recording import Recording, Unrecordable
from torch.utils._pytree import tree_leaves

pytest.importorskip("expecttest", reason="PyTorch's samples need expecttest")
from torch.testing._internal.common_methods_invocations import op_db

EXCEPT = {
    **dict.fromkeys(["empty", "empty_like", "empty_permuted", "empty_strided"], "not initialised"),
    **dict.fromkeys(["new_empty", "new_empty_strided"], "not initialised"),
    "linalg.lstsq": "LAPACK rounds by the alignment of memory: natively it differs from itself",
}
OPERATORS = [
    op
    for op in op_db
    if op.name not in EXCEPT
    and not op.name.startswith("jiterator")  # compiles for CUDA
    and "chunked" not in op.variant_test_name  # operators written in Python
]
GROUPS = 24


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def record(op: Any, sample: Any) -> tuple[Recording, list[torch.Tensor]]:
    """The program of a sample and its gradients, and what it made natively."""
    recording = Recording()
    torch.manual_seed(42)
    with recording:
        made = tensors(op(sample.input, *sample.args, **sample.kwargs))
        differentiable = [one for one in made if one.requires_grad and one.is_floating_point()]
        if differentiable:
            wanted = [one for one in tensors((sample.input, sample.args, sample.kwargs)) if one.requires_grad]
            grads = torch.autograd.grad([one.sum() for one in differentiable], wanted, allow_unused=True)
            made += [grad for grad in grads if grad is not None]
    return recording, [one for one in made if recording.knows(one) and one.layout == torch.strided]


def check(both: Both, op: Any, dtype: torch.dtype) -> None:
    grad = op.supports_autograd and dtype.is_floating_point
    sample = next(iter(op.sample_inputs("cpu", dtype, requires_grad=grad)))
    recording, made = record(op, sample)
    both.session.seed(0, 42)
    program = recording.program
    inputs = [both.put(tensor) for tensor in program.given]
    handles = both.execute_native(program.graph(*(recording.ref(one) for one in made)), inputs)
    for handle, one in zip(handles, made, strict=True):
        described = both.session.describe(handle)
        assert (described.shape, described.dtype) == (tuple(one.shape), name(one.dtype))
        assert described.stride == one.stride() or (described.stride is None and one.is_contiguous())
        assert bits(tensor_of(both.session.fetch(handle))) == bits(one.detach().resolve_conj().resolve_neg())


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
@pytest.mark.filterwarnings("ignore")
def test_operators_repeat_to_the_last_bit(both: Both, group: int) -> None:
    failures = []
    checked = 0
    for op in OPERATORS[group::GROUPS]:
        for dtype in {torch.float32, torch.int64} & set(op.dtypes):
            try:
                check(both, op, dtype)
                checked += 1
            except Unrecordable:
                continue
            except Exception as error:
                failures.append(f"{op.formatted_name} {name(dtype)}: {type(error).__name__} {str(error)[:200]}")
    assert not failures
    assert checked > 20
