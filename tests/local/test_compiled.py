"""Plans that are one call of a compiled program: its operands are looked at where they lie, as they are then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from local.both import Both, Program, bits, tensor_of
from local.leaving import MIB, Small
from torch.utils.dlpack import from_dlpack, to_dlpack

from genie.bindings import Prediction
from genie.compilers import ALIGNMENT
from genie.errors import RemoteOpError
from genie_backend_local import LocalBackend, LocalSession

X = torch.arange(1 << 14, dtype=torch.float32)
PLAN = 7


class Halving:
    """Half of its operand. Remembers what it was shown."""

    bytes = X.nbytes

    def __init__(self) -> None:
        self.shown: list[int] = []

    def view(self, operand: Any) -> Any:
        seen = from_dlpack(operand)
        self.shown.append(seen.data_ptr())
        return seen

    def __call__(self, operands: Sequence[Any]) -> Sequence[Any]:
        return [to_dlpack(each / 2) for each in operands]


class Compiled:
    """A session with a compiled plan of one operand."""

    def __init__(self, session: LocalSession, program: Any, face: tuple[Any, ...] = ((X.numel(),), "float32")) -> None:
        self.both = Both(session)
        self._prediction = Prediction(1, ())
        faces = [(*face, face[1])]
        session._native.load_compiled(
            PLAN,
            name="halving",
            program=program,
            bytes=program.bytes,
            donated=[False],
            takes=[0],
            operands=faces,
            results=faces,
            parameters=(),
        )

    def run(self, handle: int) -> torch.Tensor:
        made = self.both.handles()
        self.both.session.execute(PLAN, self._prediction.encode([made, handle]))
        return tensor_of(self.both.session.fetch(made))


@pytest.fixture
def halving() -> Halving:
    return Halving()


def test_a_value_that_stays_is_viewed_once(session: LocalSession, halving: Halving) -> None:
    compiled = Compiled(session, halving)
    one, other = compiled.both.put(X), compiled.both.put(X + 1)
    for _ in range(3):
        assert bits(compiled.run(one)) == bits(X / 2)
    assert len(halving.shown) == 1
    assert bits(compiled.run(other)) == bits((X + 1) / 2)
    assert len(halving.shown) == 2
    assert not any(place % ALIGNMENT for place in halving.shown)


def test_a_value_written_in_place_is_seen_as_it_is(session: LocalSession, halving: Halving) -> None:
    compiled = Compiled(session, halving)
    x = compiled.both.put(X)
    p = Program()
    at = p.input(X)
    p.write("aten::add_.Scalar", at, 1, to=[at])
    graph = p.graph()
    for n in range(3):
        assert bits(compiled.run(x)) == bits((X + n) / 2)
        compiled.both.execute(graph, [x])
    assert len(halving.shown) == 1


def test_parts_of_values_are_seen_as_they_are(session: LocalSession, halving: Halving) -> None:
    """A view of a value that begins anywhere, or whose elements lie apart."""
    count = 100
    compiled = Compiled(session, halving, ((count,), "float32"))
    x = compiled.both.put(X)
    p = Program()
    whole = p.input(X)
    odd = p.call("aten::slice.Tensor", whole, 0, 3, 3 + count)
    apart = p.call("aten::slice.Tensor", whole, 0, 0, 2 * count, 2)
    parts = compiled.both.execute(p.graph(odd, apart), [x])
    q = Program()
    at = q.input(X)
    q.write("aten::mul_.Scalar", at, 2, to=[at])
    for n in range(3):
        for part, expected in zip(parts, (X[3 : 3 + count], X[: 2 * count : 2]), strict=True):
            assert bits(compiled.run(part)) == bits(expected * 2**n / 2)
        compiled.both.execute(q.graph(), [x])
    assert not any(place % ALIGNMENT for place in halving.shown)


def test_a_value_that_left_and_came_back(backend: LocalBackend, halving: Halving) -> None:
    small = Small.of(backend.devices()[-1], MIB, swap=64 * MIB)
    compiled = Compiled(small.session(), halving)
    x = compiled.both.put(X)
    for n in range(4):
        assert bits(compiled.run(x)) == bits(X / 2)
        assert small.budget.reclaim(1 << 40) >= X.nbytes  # a view does not keep it there
        for _ in range(n):  # what takes its place
            compiled.both.put(X + 100)


def test_what_a_program_makes_of_memory_may_fail(session: LocalSession) -> None:
    class Refusing(Halving):
        def view(self, operand: Any) -> Any:
            raise ValueError("not this one")

    refusing = Refusing()
    compiled = Compiled(session, refusing)
    x = compiled.both.put(X)
    with pytest.raises(RemoteOpError, match="not this one"):
        compiled.run(x)
    compiled.both.check(x)
