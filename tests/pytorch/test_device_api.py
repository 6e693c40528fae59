"""The device API: ordinary tensors on an ordinary device, of which nothing runs before somebody looks."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from types import FrameType

import pytest
import torch

import genie
from genie.errors import ConfigError, GenieError, RemoteOpError
from genie_pytorch import LazyTensor

DEVICE = "remote_accelerator:0"
Tensor = torch.Tensor


def steps() -> int:
    """Steps the node has carried out so far."""
    return int(genie.get_stats()["steps"])


def test_a_tensor_on_the_device_is_a_tensor_and_a_lazy_tensor() -> None:
    x = torch.randn(2, 3, device=DEVICE)
    assert isinstance(x, torch.Tensor)
    assert isinstance(x, LazyTensor)
    assert not isinstance(torch.randn(2), LazyTensor)
    assert not isinstance("x", LazyTensor)
    assert x.device == torch.device("remote_accelerator", 0)
    assert x.is_remote_accelerator  # type: ignore[attr-defined]


def test_lazy_tensor_has_constructors() -> None:
    torch.manual_seed(3)
    x = LazyTensor.randn(4)
    torch.manual_seed(3)
    assert torch.equal(x.cpu(), torch.randn(4))
    assert LazyTensor.zeros(2, dtype=torch.int32).tolist() == [0, 0]
    assert LazyTensor.tensor([1.5]).device.type == "remote_accelerator"
    assert LazyTensor.arange(3).tolist() == [0, 1, 2]


def test_a_tensor_knows_the_operation_that_made_it() -> None:
    x = torch.ones(2, device=DEVICE)
    y = x + x
    assert isinstance(y, LazyTensor)
    assert y.operation == "aten::add"  # type: ignore[attr-defined]
    assert (y @ y).operation == "aten::dot"  # type: ignore[attr-defined]
    assert x.operation == "aten::ones"  # type: ignore[attr-defined]
    assert not hasattr(torch.ones(2), "operation")


@pytest.mark.parametrize(
    "look",
    [
        lambda t: t.cpu(),
        lambda t: t.sum().item(),
        repr,
        lambda t: bool(t.any()),
        lambda t: t.numpy(),
        lambda t: t.tolist(),
        lambda t: float(t[0]),
        lambda t: t.to("cpu"),
    ],
    ids=["cpu", "item", "print", "bool", "numpy", "tolist", "float", "to"],
)
def test_nothing_runs_before_a_look(look: Callable[[Tensor], object]) -> None:
    x = torch.ones(3, device=DEVICE)
    x.cpu()
    before = steps()
    y = (x * 2 + 1).relu()
    assert steps() == before
    look(y)
    assert steps() >= before + 3


def test_seeded_programs_draw_the_same_numbers() -> None:
    def program(device: str) -> list[Tensor]:
        torch.manual_seed(11)
        a = torch.randn(3, 4, device=device)
        b = torch.rand(5, device=device)
        c = torch.randint(0, 9, (6,), device=device)
        d = torch.empty(4, device=device).normal_(1, 2)
        e = torch.nn.functional.dropout(a, 0.5)
        f = torch.randperm(7, device=device)
        g = torch.multinomial(torch.ones(5, device=device), 3)
        return [t.cpu() for t in (a, b, c, d, e, f, g, torch.bernoulli(b))]

    for mine, native in zip(program(DEVICE), program("cpu"), strict=True):
        assert torch.equal(mine, native)


def test_generators_and_rng_state() -> None:
    generator = torch.Generator(device=DEVICE).manual_seed(5)
    host = torch.Generator().manual_seed(5)
    assert torch.equal(torch.randn(4, device=DEVICE, generator=generator).cpu(), torch.randn(4, generator=host))
    state = torch.remote_accelerator.get_rng_state()  # type: ignore[attr-defined]
    first = torch.randn(3, device=DEVICE).cpu()
    torch.remote_accelerator.set_rng_state(state)  # type: ignore[attr-defined]
    assert torch.equal(first, torch.randn(3, device=DEVICE).cpu())


def test_views_share_memory() -> None:
    x = torch.zeros(3, 4, device=DEVICE)
    host = torch.zeros(3, 4)
    for t in (x, host):
        t.view(12)[2:5].add_(1)
        t[:, 1] = 7
        t.t()[3].mul_(2).sub_(1)
        t[t > 5] = -1
        row = t[0]
        t.fill_(2)
        row += 1
        t.unbind(1)[2].zero_()
        t.diagonal().copy_(torch.tensor([9.0, 8.0, 7.0]))
    assert torch.equal(x.cpu(), host)


def test_a_view_outlives_its_base() -> None:
    view = torch.arange(6, device=DEVICE).view(2, 3)[1]
    view += 1
    assert view.tolist() == [4, 5, 6]


def test_out_and_resizing() -> None:
    out = torch.empty(0, device=DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.add(torch.ones(3, device=DEVICE), 1, out=out)
    assert out.tolist() == [2, 2, 2]


@pytest.mark.parametrize("other", [torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.bool])
def test_promotion_and_broadcasting_are_pytorchs(other: torch.dtype) -> None:
    a, b = torch.arange(3, dtype=torch.int32), torch.ones(2, 1).to(other)
    native = a + b
    mine = a.to(DEVICE) + b.to(DEVICE)
    assert (mine.dtype, mine.shape) == (native.dtype, native.shape)
    assert torch.equal(mine.cpu(), native)
    assert (a.to(DEVICE) * 2.5).dtype == (a * 2.5).dtype
    assert (b.to(DEVICE) + torch.tensor(1.0, dtype=torch.float64)).dtype == (b + torch.tensor(1.0).double()).dtype


def test_a_data_dependent_branch() -> None:
    def program(x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1

    for host in (torch.ones(3), -torch.ones(3)):
        assert torch.equal(program(host.to(DEVICE)).cpu(), program(host))
    assert genie.get_graph().backend_type == "lazy_dag"


def test_shapes_that_depend_on_data() -> None:
    x = torch.tensor([0, 3, 0, 5], device=DEVICE)
    assert x.nonzero().flatten().tolist() == [1, 3]
    assert x[x > 0].shape == (2,)
    assert torch.unique(x).tolist() == [0, 3, 5]


def test_lazy_and_native_outside_a_capture_compute_natively_and_say_so_once() -> None:
    x, y = torch.ones(3, device=DEVICE), torch.arange(3.0)

    def mix() -> Tensor:
        return x + y

    with pytest.warns(UserWarning, match=r"test_device_api\.py:\d+.*add"):
        z = mix()
    assert z.device.type == "cpu"
    assert z.tolist() == [1, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix()


def test_the_graph_is_what_came_since_the_last_look() -> None:
    x = torch.ones(2, device=DEVICE)
    x.cpu()
    y = x + 1
    z = y * y
    graph = genie.get_graph()
    assert [node.operation for node in graph.nodes()] == ["aten::add", "aten::mul"]
    add, mul = graph.nodes()
    assert mul.inputs == (add.id,)
    assert add.metadata["output_shapes"] == ((2,),)
    assert "test_device_api.py" in add.metadata["source"]
    z.cpu()
    assert [node.operation for node in genie.get_graph().nodes()] == ["aten::add", "aten::mul"]
    assert (x - 1).tolist() == [0, 0]
    assert [node.operation for node in genie.get_graph().nodes()] == ["aten::sub"]


def test_a_graph_runs_again_by_the_other_verbs() -> None:
    x = torch.tensor([1.0, 2.0], device=DEVICE)
    x.cpu()
    y = torch.relu(x - 1.5)
    graph = genie.annotate(genie.get_graph())
    plan = genie.Scheduler(genie.devices()).schedule(graph)
    (again,) = genie.execute_local(plan, [torch.tensor([3.0, 0.0])])
    assert isinstance(again, torch.Tensor)
    assert again.tolist() == [1.5, 0.0]
    assert y.tolist() == [0.0, 0.5]


# --- errors ----------------------------------------------------------------------------------------


def test_shape_errors_are_pytorchs_own() -> None:
    x, y = torch.ones(2, 3, device=DEVICE), torch.ones(2, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match="mat1 and mat2|size mismatch|must match") as mine:
        x @ y
    with pytest.raises(RuntimeError) as native:
        x.cpu() @ y.cpu()
    assert str(mine.value).split("\n")[0] == str(native.value).split("\n")[0]


def test_a_failure_on_the_node_names_the_users_line() -> None:
    x = torch.tensor([0, 5], device=DEVICE)
    table = torch.ones(3, 2, device=DEVICE)
    y = torch.nn.functional.embedding(x, table)  # the line that fails
    with pytest.raises(RemoteOpError) as caught:
        (y + 1).cpu()
    assert isinstance(caught.value, IndexError)
    assert "embedding" in caught.value.op or "index" in caught.value.op
    file, _, line = caught.value.source.rpartition(":")
    assert file.endswith("test_device_api.py")
    with open(__file__) as source:
        assert "the line that fails" in source.read().splitlines()[int(line) - 1]
    assert torch.ones(1, device=DEVICE).item() == 1  # the session lives on


def test_wrong_device_strings() -> None:
    with pytest.raises(RuntimeError, match="remote_acelerator"):
        torch.ones(2, device="remote_acelerator")
    with pytest.raises((GenieError, RuntimeError), match="device 40|index 40|40") as caught:
        torch.ones(2, device="remote_accelerator:40").cpu()
    assert "device" in str(caught.value)
    with pytest.raises(ConfigError, match="remote_accelerator"):
        torch.remote_accelerator.set_device("cpu")  # type: ignore[attr-defined]


def test_layouts_that_can_not_travel() -> None:
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(NotImplementedError, match="dense"):
        sparse.to(DEVICE)


def test_complex_and_conjugates() -> None:
    host = torch.tensor([1 + 2j, 3 - 1j])
    x = host.to(DEVICE)
    assert torch.equal((x.conj() * x).cpu(), host.conj() * host)
    assert torch.equal(x.conj().cpu(), host.conj())
    assert torch.equal(torch.view_as_real(x).cpu(), torch.view_as_real(host))


def test_printing_and_formatting() -> None:
    x = torch.tensor([1.0, 2.0], device=DEVICE)
    assert repr(x) == "tensor([1., 2.], device='remote_accelerator:0')"
    assert f"{x[0]:.2f}" == "1.00"
    out = io.StringIO()
    print(x.sum(), file=out)
    assert "3." in out.getvalue()


def test_numpy_keeps_pytorchs_rules() -> None:
    x = torch.ones(2, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="detach"):
        x.numpy()
    assert x.numpy(force=True).tolist() == [1, 1]
    assert torch.ones(2).numpy().tolist() == [1, 1]


def test_an_interrupt_inside_a_shape_rule_is_no_opinion_of_the_rule() -> None:
    """Some of PyTorch's rules are Python, where Ctrl-C may strike."""
    struck = []

    def strike(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.endswith("_meta_registrations.py") and not struck:
            struck.append(frame.f_code.co_name)
            raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(strike)
    try:
        with pytest.raises(KeyboardInterrupt):
            torch.ones(7, 11, 13, device=DEVICE)
    finally:
        sys.setprofile(before)
    assert struck
    assert torch.ones(7, 11, 13, device=DEVICE).sum().item() == 7 * 11 * 13
