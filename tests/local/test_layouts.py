"""Values that come with strides are laid out by them; values that never came say why."""

from __future__ import annotations

import pytest
import torch

from genie.errors import NodeError, RemoteOpError
from genie.graph import TensorSpec
from genie.testing.plans import Caller, single
from genie_backend_local import LocalSession

X = torch.arange(24, dtype=torch.float32)

LAYOUTS = {
    "transposed": X.view(4, 6).t(),
    "with gaps": X.view(4, 6)[:, :3],
    "expanded": X[:4].view(4, 1).expand(4, 5),
    "channels last": X.view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    "one element": X[3].view(1, 1).as_strided((1, 1), (7, 9)),
}


def upload(session: LocalSession, handle: int, tensor: torch.Tensor) -> None:
    spec = TensorSpec(tuple(tensor.shape), "float32", tensor.stride())
    session.upload(handle, spec, tensor.contiguous().numpy().tobytes())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_value_has_the_strides_it_comes_with(session: LocalSession, name: str) -> None:
    tensor = LAYOUTS[name]
    upload(session, 1, tensor)
    assert (session.describe(1).stride or torch.empty(tensor.shape).stride()) == tensor.stride()
    assert bytes(session.fetch(1).data) == tensor.contiguous().numpy().tobytes()


def test_elements_that_overlap_become_contiguous(session: LocalSession) -> None:
    overlapping = X.as_strided((3, 3), (1, 1))
    upload(session, 1, overlapping)
    assert session.describe(1).stride is None
    assert bytes(session.fetch(1).data) == overlapping.contiguous().numpy().tobytes()


@pytest.mark.parametrize(
    ("stride", "message"),
    [((1,), "another number of strides"), ((-1, 1), "negative stride"), ((1 << 62, 1), "do not fit")],
)
def test_impossible_strides_are_refused(session: LocalSession, stride: tuple[int, ...], message: str) -> None:
    with pytest.raises(NodeError, match=message):
        session.upload(1, TensorSpec((2, 2), "float32", stride), bytes(16))
    session.upload(1, TensorSpec((2, 2), "float32"), bytes(16))


def test_what_is_made_of_a_value_that_never_came_says_why(session: LocalSession) -> None:
    session.poison(1, RemoteOpError("it was lost", op="aten::mm", kind="ConnectionLost", source="train.py:7"))
    spec = TensorSpec((2,), "float32")
    caller = Caller(session)
    caller.handles()
    made = caller.run(single("aten::neg", [spec], spec), [1])
    with pytest.raises(RemoteOpError, match="it was lost") as caught:
        session.fetch(made)
    assert (caught.value.op, caught.value.source, caught.value.kind) == ("aten::mm", "train.py:7", "ConnectionLost")
