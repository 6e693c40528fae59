"""Operators that fail on the node: what reaches the user, where it says the fault is, and that work goes on."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.library import Library

import genie
from genie.errors import GenieError, RemoteOpError, UnsupportedOperation

from .conftest import Node

DEVICE = "remote_accelerator"


def line() -> str:
    """``file:line`` of the caller's next line."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return f"{__file__}:{frame.f_back.f_lineno + 1}"


@pytest.fixture(autouse=True)
def connected(node: Node, user: Callable[..., None]) -> None:
    user(node)


def works() -> None:
    """The session lives on."""
    x = torch.arange(6.0, device=DEVICE).view(2, 3)
    assert (x @ x.t() + 1).tolist() == [[6.0, 15.0], [15.0, 51.0]]


def test_an_index_out_of_range() -> None:
    table = torch.ones(3, device=DEVICE)
    where = torch.tensor([7]).to(DEVICE)
    issued = line()
    picked = table[where]
    later = picked * 2 + 1
    with pytest.raises(IndexError) as caught:
        later.cpu()
    error = caught.value
    assert isinstance(error, RemoteOpError)
    assert isinstance(error, GenieError)
    assert "index 7 is out of bounds for dimension 0 with size 3" in error.message
    assert error.op == "aten::index.Tensor"
    assert error.kind == "IndexError"
    assert error.source == issued
    assert issued in str(error)
    assert table.tolist() == [1.0] * 3  # what the failure did not touch is there
    works()


def test_the_error_stays_with_what_it_spoiled() -> None:
    ids = torch.tensor([5]).to(DEVICE)
    issued = line()
    bad = torch.nn.functional.embedding(ids, torch.ones(3, 2, device=DEVICE))
    good = torch.ones(2, device=DEVICE) * 3
    sums = bad.sum()
    for spoiled in (bad, sums, bad):
        with pytest.raises(IndexError, match="index out of range in self") as caught:
            spoiled.tolist()
        assert caught.value.source == issued  # type: ignore[attr-defined]
    assert good.tolist() == [3.0, 3.0]
    with pytest.raises(IndexError):
        (good + sums).tolist()
    works()


def test_the_error_stays_with_the_thread_that_looks() -> None:
    table = torch.ones(3, device=DEVICE)
    outcomes: dict[str, object] = {}
    together = threading.Barrier(2, timeout=20)

    def work(name: str, index: int) -> None:
        together.wait()
        for _ in range(20):
            picked = table[torch.tensor([index]).to(DEVICE)] + 1
            try:
                outcomes[name] = picked.tolist()
            except IndexError as error:
                outcomes[name] = type(error)

    threads = [threading.Thread(target=work, args=each, daemon=True) for each in (("bad", 7), ("good", 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert issubclass(outcomes["bad"], IndexError)  # type: ignore[arg-type]
    assert outcomes["good"] == [2.0]
    works()


def test_shapes_that_do_not_fit() -> None:
    x = torch.ones(2, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(2x3 and 2x3\)") as caught:
        issued = line()
        y = torch.mm(x, x)
        y.cpu()
    assert getattr(caught.value, "source", issued) == issued
    with pytest.raises(RuntimeError, match="must match"):
        (x + torch.ones(5, device=DEVICE)).cpu()
    works()


def test_a_matrix_that_has_no_factor() -> None:
    x = -torch.eye(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="not positive-definite"):
        torch.linalg.cholesky(x).cpu()
    works()


def test_an_in_place_operator_spoils_what_it_wrote() -> None:
    x = torch.zeros(3, device=DEVICE)
    index = torch.tensor([9]).to(DEVICE)
    issued = line()
    x.index_fill_(0, index, 1.0)
    with pytest.raises(IndexError) as caught:
        x.cpu()
    assert caught.value.source == issued  # type: ignore[attr-defined]
    works()


def test_in_a_module_the_module_is_named_too() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Embedding(4, 2))).to(DEVICE)
    issued = line()
    found = model[1](torch.tensor([6]).to(DEVICE))
    with pytest.raises(IndexError) as caught:
        found.tolist()
    assert caught.value.source == issued  # type: ignore[attr-defined]
    works()


def test_inside_backward() -> None:
    class Faulty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad.index_select(0, torch.tensor([50]).to(grad.device)).expand(4)

    x = torch.ones(4, device=DEVICE, requires_grad=True)
    with pytest.raises(IndexError, match="out of range") as caught:
        Faulty.apply(x).sum().backward()
        x.grad.cpu()  # type: ignore[union-attr]
    assert __file__ in caught.value.source  # type: ignore[attr-defined]
    works()


def test_an_exception_of_the_users_inside_backward() -> None:
    class Mine(Exception):
        pass

    class Faulty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            raise Mine("my own")

    x = torch.ones(4, device=DEVICE, requires_grad=True)
    with pytest.raises(Mine, match="my own"):
        Faulty.apply(x).sum().backward()
    y = torch.ones(4, device=DEVICE, requires_grad=True)
    (y * 3).sum().backward()
    assert y.grad is not None and y.grad.tolist() == [3.0] * 4
    works()


def test_an_exception_inside_a_capture() -> None:
    with pytest.raises(ZeroDivisionError), genie.capture():
        x = torch.ones(3)
        assert x.device.type == DEVICE
        1 / 0  # noqa: B018
    assert not genie.is_capturing()
    assert torch.ones(3).device.type == "cpu"
    with genie.capture():
        y = torch.ones(3) + 1
    assert y.tolist() == [2.0] * 3
    works()


def test_an_operator_that_fails_inside_a_capture() -> None:
    with genie.capture():
        issued = line()
        bad = torch.ones(3)[torch.tensor([7])]
    with pytest.raises(IndexError) as caught:
        bad.tolist()
    assert caught.value.source == issued  # type: ignore[attr-defined]
    works()


class Lookup(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(4, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        ids = ids + 0
        return self.table(ids) * 2


def _line_of_the_lookup() -> str:
    lines, first = inspect.getsourcelines(Lookup.forward)
    return f"{__file__}:{first + len(lines) - 1}"


@pytest.mark.parametrize("way", ["run", "compile"])
def test_captured_whole(way: str) -> None:
    model = Lookup()
    expected = model(torch.tensor([1, 2])).tolist()
    if way == "run":
        call = lambda ids: genie.run(model, ids)  # noqa: E731
    else:
        compiled = torch.compile(model.to(DEVICE), backend="genie")
        call = lambda ids: compiled(ids.to(DEVICE)).cpu()  # noqa: E731
    assert call(torch.tensor([1, 2])).tolist() == expected
    with pytest.raises(IndexError, match="index out of range in self") as caught:
        call(torch.tensor([1, 9]))
    assert caught.value.source == _line_of_the_lookup()  # type: ignore[attr-defined]
    assert call(torch.tensor([1, 2])).tolist() == expected
    works()


# --- what a node does not do ---------------------------------------------------------------------


def test_a_sparse_tensor() -> None:
    with pytest.raises(NotImplementedError) as caught:
        torch.eye(3).to_sparse().to(DEVICE).to_dense().cpu()
    assert isinstance(caught.value, GenieError), caught.value
    assert "sparse" in str(caught.value).lower()
    works()


def test_made_sparse_there() -> None:
    with pytest.raises(NotImplementedError) as caught:
        torch.eye(3, device=DEVICE).to_sparse().cpu()
    assert isinstance(caught.value, GenieError)
    works()


def test_a_quantized_tensor() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions call it deprecated
        x = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    with pytest.raises(NotImplementedError) as caught:
        x.to(DEVICE)
    assert isinstance(caught.value, GenieError), caught.value
    works()


def test_an_operator_the_node_does_not_have() -> None:
    library = Library("genie_integration", "FRAGMENT")
    library.define("halve(Tensor x) -> Tensor")
    library.impl("halve", lambda x: x / 2, "CPU")
    x = torch.ones(2, device=DEVICE)
    kept = x + 1
    issued = ""
    with pytest.raises(NotImplementedError) as caught:
        issued = line()
        torch.ops.genie_integration.halve(x).cpu()
    assert isinstance(caught.value, UnsupportedOperation)
    assert "genie_integration::halve" in str(caught.value)
    assert issued in str(caught.value)
    assert kept.tolist() == [2.0, 2.0]
    works()


def test_a_custom_operator_made_of_known_ones() -> None:
    library = Library("genie_integration", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    assert torch.ops.genie_integration.twice(torch.ones(2, device=DEVICE)).tolist() == [2.0, 2.0]


# --- devices -------------------------------------------------------------------------------------


def test_a_device_that_is_spelt_wrong() -> None:
    with pytest.raises(RuntimeError, match="remote_accelerater"):
        torch.ones(2, device="remote_accelerater:0")
    works()


@pytest.mark.parametrize("make", [lambda device: torch.ones(2, device=device), lambda device: torch.ones(2).to(device)])
def test_a_device_that_is_not_there(make: Callable[[str], torch.Tensor]) -> None:
    with pytest.raises(GenieError, match="no device 7") as caught:
        make(f"{DEVICE}:7").cpu()
    assert caught.value.hint
    works()
