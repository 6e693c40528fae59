"""``with genie.capture():``: the program can't tell, and the graph is all it did."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genie
from genie_pytorch import LazyTensor

DEVICE = "remote_accelerator"
Tensor = torch.Tensor


# --- factories -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(2, 3),
        lambda: torch.zeros(2),
        lambda: torch.tensor([1.0, 2.0]),
        lambda: torch.arange(4),
        lambda: torch.full((2,), 3.0),
        lambda: torch.eye(2),
        lambda: torch.normal(0.0, 1.0, (3,)),
        lambda: torch.as_tensor([1, 2]),
        lambda: torch.zeros_like(torch.ones(2, device="cpu")),
        lambda: torch.ones(2, device="cpu").new_zeros(3),
    ],
)
def test_factories_are_lazy_inside_and_native_outside(make: Callable[[], Tensor]) -> None:
    torch.manual_seed(2)
    native = make()
    assert native.device.type == "cpu"
    torch.manual_seed(2)
    with genie.capture():
        lazy = make()
    assert isinstance(lazy, LazyTensor)
    assert lazy.dtype == native.dtype
    assert torch.equal(lazy.cpu(), native)
    assert make().device.type == "cpu"


def test_a_device_that_is_named_is_respected() -> None:
    with genie.capture():
        assert torch.zeros(2, device="cpu").device.type == "cpu"
        assert torch.zeros(2, device="meta").device.type == "meta"
        with torch.device("cpu"):
            assert torch.zeros(2).device.type == "cpu"
            with genie.capture():
                assert isinstance(torch.zeros(2), LazyTensor)
            assert torch.zeros(2).device.type == "cpu"
        assert isinstance(torch.zeros(2), LazyTensor)
    host = torch.zeros(2)
    with genie.capture():
        assert torch.as_tensor(host) is host
        assert torch.ones(2, out=host) is host
    assert host.tolist() == [1, 1]


def test_captures_nest() -> None:
    assert not genie.is_capturing()
    with genie.capture():
        with genie.capture():
            inner = torch.zeros(2)
            assert genie.is_capturing()
        assert genie.is_capturing()
        after = torch.zeros(2)
    assert isinstance(inner, LazyTensor)
    assert isinstance(after, LazyTensor)
    assert not genie.is_capturing()
    assert torch.zeros(2).device.type == "cpu"


def test_an_exception_ends_the_capture() -> None:
    with pytest.raises(ZeroDivisionError), genie.capture(), genie.capture():
        torch.ones(2) + 1
        raise ZeroDivisionError
    assert not genie.is_capturing()
    assert torch.zeros(2).device.type == "cpu"


def test_an_error_of_the_program_is_its_own() -> None:
    host = torch.ones(2, 3)
    with genie.capture(), pytest.raises(RuntimeError, match="mat1 and mat2"):
        host @ host
    with genie.capture():
        assert (host + 1).sum().item() == 12


def test_other_threads_are_untouched() -> None:
    seen: list[str] = []

    def other() -> None:
        seen.append(torch.zeros(2).device.type)
        seen.append(str(genie.is_capturing()))

    with genie.capture():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(30)
    assert seen == ["cpu", "False"]


def test_two_threads_capture_apart() -> None:
    graphs: dict[str, list[str]] = {}
    gate = threading.Barrier(2, timeout=30)

    def work(name: str, program: Callable[[Tensor], Tensor]) -> None:
        with genie.capture():
            gate.wait()
            y = program(torch.ones(2))
            gate.wait()
        graphs[name] = [node.operation for node in genie.get_graph().nodes()]
        assert y.device.type == DEVICE

    threads = [
        threading.Thread(target=work, args=("a", lambda x: x + 1)),
        threading.Thread(target=work, args=("b", lambda x: (x * 2).exp())),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert graphs == {"a": ["aten::ones", "aten::add"], "b": ["aten::ones", "aten::mul", "aten::exp"]}


# --- the graph -------------------------------------------------------------------------------------


def test_the_graph_is_the_whole_region() -> None:
    with genie.capture() as captured:
        x = torch.ones(3)
        y = x + 1
        assert y.sum().item() == 6  # a look does not end it
        z = y * 2
        inside = genie.get_graph()
    z.cpu()
    graph = genie.get_graph()
    expected = ["aten::ones", "aten::add", "aten::sum", "aten::mul"]
    assert [node.operation for node in graph.nodes()] == expected
    assert [node.operation for node in inside.nodes()] == expected
    assert graph.backend_type == "lazy_dag"
    assert [node.id for node in graph.nodes()] == sorted(node.id for node in graph.nodes())
    assert all(before < node.id for node in graph.nodes() for before in node.inputs)
    assert graph.get_node(3).inputs == (1,)
    assert captured.graph().text() == graph.text()


def test_nested_regions_are_one_graph() -> None:
    with genie.capture():
        x = torch.ones(3)
        with genie.capture():
            y = x + 1
        y.cpu()
        y * 2
    assert [node.operation for node in genie.get_graph().nodes()] == ["aten::ones", "aten::add", "aten::mul"]


def test_a_branch_on_data_works_and_says_so() -> None:
    def program(x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x * 3

    for host in (torch.ones(2), -torch.ones(2)):
        with genie.capture():
            y = program(host)
        assert torch.equal(y.cpu(), program(host))
    assert genie.get_graph().backend_type == "lazy_dag"


def test_modules_and_parameters_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4))
    with genie.capture():
        model(torch.ones(2, 3))
    graph = genie.get_graph()
    paths = {node.metadata.get("module_path") for node in graph.nodes()}
    assert {"0", "1", "2"} <= paths
    origins = {(entry.origin, entry.name) for entry in graph.inputs}
    assert {("parameter", "0.weight"), ("parameter", "0.bias"), ("buffer", "2.running_mean")} <= origins


# --- operands of the host --------------------------------------------------------------------------


def test_host_operands_are_lifted_and_stay_where_they_are() -> None:
    a, b = torch.arange(3.0), torch.ones(3)
    with genie.capture():
        c = a + b
        assert isinstance(c, LazyTensor)
        d = torch.stack([a, b])
        e = torch.cat([c, a])
        f = torch.where(a > 1, a, b)
        g = torch.einsum("i,i->", a, b)
    assert a.device.type == "cpu"
    assert [t.device.type for t in (d, e, f, g)] == [DEVICE] * 4
    assert c.tolist() == [1, 2, 3]
    assert d.tolist() == [[0, 1, 2], [1, 1, 1]]
    assert e.tolist() == [1, 2, 3, 0, 1, 2]
    assert f.tolist() == [1, 1, 2]
    assert g.item() == 3


def test_a_host_tensor_is_uploaded_once_per_version() -> None:
    weight = torch.ones(100)
    with genie.capture():
        torch.ones(1).item()
        before = genie.get_stats()["uploaded_bytes"]
        x = torch.zeros(100)
        for _ in range(5):
            x = x + weight
        x.cpu()
        assert genie.get_stats()["uploaded_bytes"] == before + 400
        weight.add_(1)
        x = x + weight
        assert x[0].item() == 7
        assert genie.get_stats()["uploaded_bytes"] == before + 800


def test_mixed_device_context_and_host() -> None:
    on_device = torch.ones(3, device=DEVICE)
    host = torch.arange(3.0)
    with genie.capture():
        inside = torch.full((3,), 2.0)
        y = on_device * inside + host
    assert y.tolist() == [2, 3, 4]
    with pytest.warns(UserWarning, match="mixes"):
        z = y + torch.ones(3)
    assert z.device.type == "cpu"


@pytest.mark.parametrize(
    "write",
    [
        lambda t, u: t.add_(u),
        lambda t, u: t.copy_(u),
        lambda t, u: t.__setitem__(0, 5),
        lambda t, u: t.__setitem__(slice(1, 3), u[:2]),
        lambda t, u: t.__setitem__(t > 1, -1),
        lambda t, u: t.__imul__(u),
        lambda t, u: t.view(2, 2).t().fill_(3),
        lambda t, u: t[1:].mul_(2),
        lambda t, u: t.data.add_(1),
        lambda t, u: torch.add(t, u, out=t),
        lambda t, u: torch._foreach_add_([t], [u]),
        lambda t, u: F.relu(t.sub_(2), inplace=True),
        lambda t, u: t.unbind()[2].zero_(),
        lambda t, u: t.numpy().__setitem__(1, 9),
        lambda t, u: t.detach().zero_(),
        lambda t, u: nn.init.constant_(t, 4),
        lambda t, u: t.index_add_(0, torch.tensor([1, 1]), u[:2]),
        lambda t, u: t.clamp_(max=u.max()),
    ],
)
@pytest.mark.parametrize("lazy_operand", [False, True])
def test_writes_to_host_tensors_are_real_at_once(write: Callable[[Tensor, Tensor], object], lazy_operand: bool) -> None:
    native, mine = torch.arange(4.0), torch.arange(4.0)
    operand = torch.tensor([2.0, 3.0, 4.0, 5.0])
    write(native, operand)
    with genie.capture():
        before = mine * 1  # lifted at the old version
        write(mine, operand * 1 if lazy_operand else operand)
        assert mine.device.type == "cpu"
        after = mine * 1
        assert torch.equal(mine, native)  # read inside
    assert torch.equal(mine, native)
    assert torch.equal(after.cpu(), native)
    assert before.tolist() == [0, 1, 2, 3]


def test_memory_of_others_is_never_taken_for_known() -> None:
    array = numpy.zeros(3, dtype=numpy.float32)
    host = torch.from_numpy(array)
    with genie.capture():
        assert (host + 1).sum().item() == 3
        array += 1
        assert (host + 1).sum().item() == 6
        mine = torch.zeros(3, device="cpu")
        (mine + 1).sum()
        view = mine.numpy()
        assert (mine + 1).sum().item() == 3
        view += 1
        assert (mine + 1).sum().item() == 6


def test_reading_a_host_tensor_is_native() -> None:
    host = torch.tensor([1.0, 2.0])
    with genie.capture():
        assert host.tolist() == [1, 2]
        assert host.numpy().tolist() == [1, 2]
        assert host[0].item() == 1
        assert repr(host) == "tensor([1., 2.])"
        assert host.cpu() is host
        assert host.to("cpu") is host
        assert host.float() is host
        assert host.contiguous() is host
        assert host.view(2, 1)._base is host
        assert host.detach().device.type == "cpu"
        assert [float(v) for v in host] == [1, 2]
        assert len(host) == 2
        assert host.data_ptr() == host.detach().data_ptr()
        assert torch.equal(host, torch.tensor([1.0, 2.0], device="cpu"))
        assert F.dropout(host, training=False) is host
        assert copy.deepcopy(host).device.type == "cpu"
        assert pickle.loads(pickle.dumps(host)).tolist() == [1, 2]


def test_scalars_and_numbers() -> None:
    scale = torch.tensor(2.0)
    with genie.capture():
        y = torch.ones(2) * scale
        z = scale * scale
        w = scale + 1
    assert y.tolist() == [2, 2]
    assert isinstance(z, LazyTensor)
    assert (z.item(), w.item()) == (4, 3)


def test_running_statistics_come_home() -> None:
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    native = copy.deepcopy(mine)
    x = torch.randn(5, 3)
    with genie.capture():
        for _ in range(3):
            mine(x)
        inside = mine[1].running_mean.clone()
    for _ in range(3):
        native(x)
    assert torch.equal(inside, native[1].running_mean)
    assert torch.equal(mine[1].running_var, native[1].running_var)
    assert mine[1].num_batches_tracked.item() == 3


def test_a_host_generator_draws_its_own_numbers() -> None:
    def draws(generator: torch.Generator) -> list[Tensor]:
        a = torch.randn(3, generator=generator)
        b = torch.empty(3).normal_(generator=generator)
        c = torch.randperm(4, generator=generator)
        d = torch.multinomial(torch.ones(4), 2, generator=generator)
        return [a, b, c, d]

    native = draws(torch.Generator().manual_seed(1))
    with genie.capture():
        mine = draws(torch.Generator().manual_seed(1))
    assert all(isinstance(t, LazyTensor) for t in mine)
    for one, other in zip(mine, native, strict=True):
        assert torch.equal(one.cpu(), other)


def test_sparse_and_quantized_host_tensors_stay_native() -> None:
    sparse = torch.eye(3).to_sparse()
    with genie.capture():
        dense = torch.sparse.mm(sparse, torch.ones(3, 2, device="cpu"))
        assert sparse.to_dense().sum().item() == 3
    assert dense.sum().item() == 6


def test_autocast_of_the_host_holds_for_what_is_lifted() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        native = model(x)
        with genie.capture():
            mine = model(x)
            again = mine @ mine.t()
    assert mine.dtype == native.dtype == again.dtype == torch.bfloat16
    assert torch.equal(mine.cpu(), native)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_loader_with_workers_works_inside() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(6.0).view(6, 1))
    with genie.capture():
        batches = [batch for (batch,) in torch.utils.data.DataLoader(data, batch_size=3, num_workers=1)]
        total = sum((batch * 2).sum() for batch in batches)
    assert batches[0].device.type == "cpu"
    assert total.item() == 30


def test_a_loader_collates_on_the_host_and_shuffles_by_its_generator() -> None:
    data = [(torch.tensor([float(i)]), i) for i in range(6)]

    def order(loader: torch.utils.data.DataLoader[object]) -> list[int]:
        return [int(label) for _, labels in loader for label in labels]

    def loader() -> torch.utils.data.DataLoader[object]:
        generator = torch.Generator().manual_seed(4)
        return torch.utils.data.DataLoader(data, batch_size=2, shuffle=True, generator=generator)

    native = order(loader())
    with genie.capture():
        assert order(loader()) == native
        assert all(x.device.type == "cpu" for x, _ in loader())


def test_a_forked_child_of_a_capture_stays_native() -> None:
    with genie.capture():
        torch.ones(2).sum().item()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, torch.zeros(2).device.type.encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            assert pipe.read() == "cpu"
        assert os.waitpid(child, 0)[1] == 0


def test_a_leaf_is_connected_anew_under_another_mode() -> None:
    weight = torch.ones(2, requires_grad=True)
    with genie.capture(), torch.device("cpu"), genie.capture():
        for _ in range(2):
            (weight * 3).sum().backward()
    assert weight.grad.tolist() == [6, 6]


@pytest.mark.models
@torch.no_grad()
def test_an_unmodified_model_of_the_host_generates() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=4, vocab_size=100, bos_token_id=None, eos_token_id=None
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 100, (2, 5))
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 5}):
        torch.manual_seed(1)
        native = model.generate(ids, max_new_tokens=6, pad_token_id=0, **options)
        torch.manual_seed(1)
        with genie.capture():
            mine = model.generate(ids, max_new_tokens=6, pad_token_id=0, **options)
        assert torch.equal(mine.cpu(), native)
    assert model.device.type == "cpu"


def test_threads_that_ended_leave_their_streams_to_others() -> None:
    x = torch.ones(3, device=DEVICE)
    found: list[Tensor] = []

    def work() -> None:
        found.append(x + len(found))

    def run() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    run()
    before = genie.get_stats()["streams"]
    for _ in range(20):
        run()
    # A thread's end and that of join() are not one: now and then the next thread is there before.
    assert genie.get_stats()["streams"] - before < 5
    assert [each.tolist()[0] for each in found] == list(range(1, 22))
