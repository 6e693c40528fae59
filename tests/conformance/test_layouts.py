"""Operands that are not contiguous: a kernel lays its result out as it likes, and views after it must see that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from conformance.layouts import LAYOUTS, Layout, arranged, copied
from torch import Tensor
from torch.utils._pytree import tree_leaves

import genie_pytorch  # noqa: F401  (makes the device)

pytest.importorskip("expecttest", reason="PyTorch's samples need expecttest")
from torch.testing._internal.common_methods_invocations import op_db

DEVICE = "remote_accelerator:0"
GROUPS = 12
EXCEPT = {
    **dict.fromkeys(["empty", "empty_like", "empty_permuted", "empty_strided"], "not initialised"),
    **dict.fromkeys(["new_empty", "new_empty_strided"], "not initialised"),
    "as_strided": "about memory, not about what is in it",
    "histogramdd": "not recordable: its results cannot be counted",
    "masked.median": "the CPU kernel sorts a repeated row in place, and natively gives wrong medians",
    "linalg.lstsq": "LAPACK rounds by the alignment of memory: natively it differs from itself",
    "tensor_split": "takes a tensor that must be on the CPU",
    "to": "takes a device, and the samples name the CPU",
    "to_sparse": "sparse tensors stay on the node",
}
OPERATORS = [
    op
    for op in op_db
    if op.name.split("_copy")[0].split("_scatter")[0] not in EXCEPT
    and torch.float32 in op.supported_dtypes("cpu")
    and "sparse" not in op.name
    and "chunked" not in op.variant_test_name  # operators written in Python
    and not op.name.startswith("jiterator")  # compiles for CUDA
]


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def run(op: Any, operands: Any, gradients: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Results, and gradients of what wants them."""
    first, rest, named = operands
    torch.manual_seed(0)
    made = tensors(op(first, *rest, **named))
    ends = [one for one in made if one.requires_grad]
    wanted = [one for one in tensors(operands) if one.requires_grad]
    found = torch.autograd.grad(ends, wanted, gradients, allow_unused=True) if gradients and ends and wanted else ()
    return made, list(found)


def differences(expected: Tensor, found: Tensor) -> Iterator[str]:
    """Read through a view, as the program's next operator does."""
    expected, found = (one.detach().reshape(-1).resolve_conj() for one in (expected, found))
    if expected.shape != found.shape or expected.dtype != found.dtype:
        yield f"{expected.numel()} elements of {expected.dtype}, {found.numel()} of {found.dtype}"
    elif not torch.equal(finite(expected), finite(found.cpu())):
        yield "other values"


def finite(tensor: Tensor) -> Tensor:
    """NaN has many bit patterns."""
    return (torch.view_as_real(tensor.to(torch.complex128)) if tensor.is_complex() else tensor).nan_to_num()


def check(op: Any) -> Iterator[str]:
    """The first sample in which a layout means something, in all layouts."""
    for sample in op.sample_inputs("cpu", torch.float32, requires_grad=op.supports_autograd):
        operands = (sample.input, list(sample.args), sample.kwargs)
        programs = {name: arranged(operands, layout) for name, layout in LAYOUTS.items()}
        if any(not one.is_contiguous() for program in programs.values() for one in tensors(program)):
            for name, program in programs.items():
                yield from (f"{name}: {text}" for text in compare(op, program, LAYOUTS[name]))
            return


def compare(op: Any, program: Any, layout: Layout) -> Iterator[str]:
    try:
        made, _ = run(op, program, ())
        gradients = [arranged(torch.randn_like(one.detach()), layout) for one in made if one.requires_grad]
        expected, grads = run(op, program, gradients)
    except Exception:  # not a program the CPU runs
        return
    try:
        found, found_grads = run(op, copied(program, DEVICE), copied(gradients, DEVICE))
        for one, other in zip(expected, found, strict=True):
            yield from differences(one, other)
        for one, other in zip(grads, found_grads, strict=True):
            if one is not None and other is not None:
                yield from (f"gradient: {text}" for text in differences(one, other))
    except RuntimeError as error:
        yield str(error).splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
@pytest.mark.filterwarnings("ignore")
def test_operators(group: int) -> None:
    failures = [f"{op.formatted_name}: {text}" for op in OPERATORS[group::GROUPS] for text in check(op)]
    assert not failures, "\n".join(failures)
