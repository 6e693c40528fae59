"""Steps that fail, plans and requests that are refused."""

from __future__ import annotations

import pytest
import torch
from local.both import Both, Program

from genie.errors import NodeError, OutOfMemory, PlanError, ProtocolError, RemoteOpError, SessionClosed
from genie.graph import Arg, Const, Many, Ref, ScalarTensor, TensorSpec
from genie_backend_local import LocalBackend, LocalSession

VECTOR = torch.tensor([1.0, 2.0, 3.0])


def test_a_failure_carries_everything_to_the_next_look(both: Both) -> None:
    program = Program()
    x, y = program.input(VECTOR), program.input(torch.zeros(2))
    fine = program.call("aten::neg", x)
    broken = program.call("aten::add.Tensor", x, y, 1, source=0)
    after = program.call("aten::exp", broken)
    plan = program.graph(fine, broken, after, sources=("train.py:7",))
    handles = [both.put(tensor) for tensor in program.given]
    first, second, third = both.execute(plan, handles)
    both.check(first, second, third)
    for handle in (second, third):
        with pytest.raises(RemoteOpError) as caught:
            both.session.describe(handle)
        error = caught.value
        assert (error.op, error.step, error.kind) == ("aten::add.Tensor", 1, "RuntimeError")
        assert (error.source, error.device) == ("train.py:7", "cpu")
        assert error.message.startswith("The size of tensor a (3) must match the size of tensor b (2)")
        assert "C++" not in error.message and "frame #" not in error.message
    assert both.session.stats()["failed_steps"] == 1
    assert both.session.stats()["skipped_steps"] == 1


@pytest.mark.parametrize(
    ("kind", "target", "args"),
    [
        ("IndexError", "aten::select.int", (0, 5)),
        ("RuntimeError", "aten::view", (Many((7,)),)),
        ("NotImplementedError", "aten::_log_softmax", (0, False)),
    ],
)
def test_kinds_are_python_s(both: Both, kind: str, target: str, args: tuple[Arg, ...]) -> None:
    program = Program()
    x = program.input(torch.arange(4))
    (handle,) = both.execute(program.graph(program.call(target, x, *args)), [both.put(program.given[0])])
    with pytest.raises(RemoteOpError) as caught:
        both.session.fetch(handle)
    assert caught.value.kind == kind
    both.check(handle)


def test_a_failed_write_poisons_all_who_share_the_memory(both: Both) -> None:
    program = Program()
    base, wrong = program.input(VECTOR), program.input(torch.zeros(2))
    view = program.call("aten::slice.Tensor", base, 0, 0, 2, 1)
    program.write("aten::add_.Tensor", base, wrong, 1, to=[base])
    later = program.call("aten::neg", view)
    other = program.call("aten::neg", wrong)
    handle, fine = both.put(VECTOR), both.put(program.given[1])
    made = both.execute(program.graph(view, later, other), [handle, fine])
    both.check(handle, fine, *made)
    with pytest.raises(RemoteOpError):
        both.session.fetch(handle)


def test_poison_crosses_executions_until_freed(both: Both) -> None:
    bad = Program()
    x = bad.input(VECTOR)
    (poisoned,) = both.execute(bad.graph(bad.call("aten::view", x, Many((2,)))), [both.put(VECTOR)])
    good = Program()
    y = good.input(VECTOR)
    made = good.call("aten::neg", y)
    (derived,) = both.execute(good.graph(made), [poisoned])
    both.check(poisoned, derived)
    (fine,) = both.execute(good.graph(made), [both.put(VECTOR)])
    both.check(fine)
    both.session.free([poisoned, derived])
    with pytest.raises(NodeError, match="unknown"):
        both.session.fetch(poisoned)


@pytest.mark.parametrize(
    ("target", "args", "says"),
    [
        ("aten::no_such_operator", (Ref(0),), "no operator"),
        ("aten::add.no_such", (Ref(0), Ref(0), 1), "no operator"),
        ("prim::Print", (Ref(0),), "not allowed"),
        ("quantized::add", (Ref(0), Ref(0), 1.0, 0), "not allowed"),
        ("aten::from_file", ("/etc/passwd", None, 1), "not allowed"),
        ("aten::_print", ("text",), "not allowed"),
        ("aten::qscheme", (Ref(0),), "not allowed"),
        ("aten::add.Tensor", (Ref(0),), "'other' is missing"),
        ("aten::add.Tensor", (Ref(0), Ref(0), 1, 2), "4 arguments, its schema has 3"),
        ("aten::add.Tensor", (Ref(0), 1, 1), "a tensor is required, not int"),
        ("aten::add.Tensor", (Ref(0), None, 1), "a tensor is required, not None"),
        ("aten::add.Tensor", (Ref(0), Ref(0), "1"), "'alpha': .* is required, not str"),
        ("aten::add.Tensor", (Ref(0), Ref(0), Many((1,))), "'alpha'"),
        ("aten::transpose.int", (Ref(0), 0.0, 1), "int is required, not float"),
        ("aten::cat", (Ref(0), 0), "a list is required"),
        ("aten::cat", (Many((Ref(0), 1)), 0), "a list of values is required"),
        ("aten::view", (Ref(0), Many((1, "2"))), "'size'"),
        ("aten::view", (Ref(0), Many((1.0,))), "'size'"),
        ("aten::softmax.int", (Ref(0), 0, Const("layout", "strided")), "'dtype'"),
        ("aten::gelu", (Ref(0), Const("dtype", "float32")), "'approximate'"),
        ("aten::neg", (ScalarTensor("int8", 1000, False),), "'self'"),
        ("aten::to.device", (Ref(0), Const("device", "cuda:3"), Const("dtype", "float32")), "not this session's"),
        ("aten::set_.source_Storage", (Ref(0), 1), "Storage is required, not int"),
    ],
)
def test_bad_steps_are_refused_when_loaded(
    session: LocalSession, target: str, args: tuple[Arg, ...], says: str
) -> None:
    program = Program()
    program.input(VECTOR)
    program.call(target, *args)
    with pytest.raises(PlanError, match=says) as caught:
        Both(session).load(program.graph())
    assert f"step 0 ({target})" in str(caught.value)


def test_a_wrong_number_of_results_is_refused_or_fails(both: Both) -> None:
    program = Program()
    program.calls("aten::max.dim", 1, program.input(VECTOR), 0, False)
    with pytest.raises(PlanError, match="1 outputs, its schema has 2 results"):
        both.load(program.graph())
    program = Program()
    parts = program.calls("aten::split.Tensor", 2, program.input(VECTOR), 1, 0)
    made = both.execute_native(program.graph(*parts), [both.put(VECTOR)])
    with pytest.raises(RemoteOpError, match="made 3 values, the plan numbers 2"):
        both.session.fetch(made[0])


def test_requests_that_make_no_sense(both: Both) -> None:
    program = Program()
    x, y = program.input(VECTOR, donated=True), program.input(VECTOR)
    graph = program.graph(program.call("aten::add.Tensor", x, y, 1))
    plan = both.load(graph)
    one, two = both.put(VECTOR), both.put(VECTOR)
    session = both.session
    encode = both._predictions[plan].encode
    for words, says in (
        ([50, one, 999, 1], "handle 999, input 1 of plan"),
        ([50, one, one, 1], "donated and bound twice"),
        ([two, one, two, 1], "taken"),
        ([0, one, two, 1], "positive"),
        ([(1 << 63) + 1, one, two, 1], "positive"),
    ):
        with pytest.raises(NodeError, match=says):
            session.execute(plan, encode(words))
    session.execute(plan, encode([50, one, two, 1]))
    assert session.fetch(50).spec.shape == (3,)
    with pytest.raises(NodeError, match="unknown"):
        session.fetch(one)
    with pytest.raises(NodeError, match="plan 77 is unknown"):
        session.execute(77, b"\0")
    with pytest.raises(ProtocolError, match="cut short"):
        session.execute(plan, b"\x01")
    with pytest.raises(NodeError, match="taken"):
        session.upload(two, TensorSpec((1,), "uint8"), b"1")
    with pytest.raises(NodeError, match="positive"):
        session.upload(-1, TensorSpec((1,), "uint8"), b"1")
    with pytest.raises(NodeError, match="3 bytes for a value of 4 bytes"):
        session.upload(60, TensorSpec((1,), "float32"), b"123")
    with pytest.raises(NodeError, match="64 bits"):
        session.upload(60, TensorSpec((1 << 62, 1 << 62), "float32"), b"")
    with pytest.raises(NodeError, match="no dtype"):
        session.upload(60, TensorSpec((1,), "float33"), b"1234")
    with pytest.raises(NodeError, match="has 12 bytes"):
        session.fetch(50, memoryview(bytearray(11)))


def test_a_scalar_that_does_not_fit_is_refused_and_the_others_arrive(both: Both) -> None:
    program = Program()
    x = program.input(torch.tensor([1], dtype=torch.int8))
    y = program.call("aten::mul.Tensor", x, ScalarTensor("int8", 2, False))
    graph = program.graph(program.call("aten::add.Scalar", y, 1, 1))
    plan, handle = both.load(graph), both.put(program.given[0])
    encode = both._predictions[plan].encode
    with pytest.raises(ProtocolError, match="parameter 0"):
        both.session.execute(plan, encode([10, handle, 1000, 5, 1]))
    both.session.execute(plan, encode([11, handle, 3, 5, 1]))
    assert bytes(both.session.fetch(11).data) == b"\x08"


def test_a_closed_session_says_so(backend: LocalBackend) -> None:
    session = backend.connect(backend.devices()[-1])
    session.upload(1, TensorSpec((2,), "uint8"), b"12")
    kept = session.fetch(1).data
    session.close()
    session.close()
    assert bytes(kept) == b"12"
    for call in (lambda: session.fetch(1), lambda: session.execute(0, b"\0"), lambda: session.free([1])):
        with pytest.raises(SessionClosed):
            call()
    assert session.stats()["memory_bytes"] == 0


def test_values_without_bytes_say_so(both: Both) -> None:
    program = Program()
    x = program.input(torch.eye(3))
    sparse = program.call("aten::_to_sparse", x)
    meta = program.call("aten::empty_like", x, None, None, Const("device", "meta"))
    back = program.call("aten::_to_dense", sparse)
    made = both.execute_native(program.graph(sparse, meta, back), [both.put(program.given[0])])
    for handle in made[:2]:
        with pytest.raises(RemoteOpError, match="cannot be brought home") as caught:
            both.session.fetch(handle)
        assert caught.value.kind == "NotImplementedError"
    both.session.fetch(made[2])


def test_more_memory_than_the_session_has_is_refused_before_it_is_taken() -> None:
    backend = LocalBackend(memory_limit_gb=1e-6)  # 1,073 bytes
    both = Both(backend.connect(backend.devices()[-1]))
    session = both.session
    handle = both.put(torch.zeros(200))
    with pytest.raises(OutOfMemory, match="needs 400 bytes, 800 of the session's 1073") as caught:
        session.upload(99, TensorSpec((100,), "float32"), bytes(400))
    assert caught.value.kind == "OutOfMemoryError"
    program = Program()
    x = program.input(torch.zeros(200))
    doubled = program.call("aten::add.Tensor", x, x, 1)
    huge = program.call("aten::zeros", Many((1 << 40,)), Const("dtype", "float32"), None, Const("device", "self"))
    small = program.call("aten::sum", x)
    made = both.execute_native(program.graph(doubled, huge, small), [handle])
    for poisoned, need in zip(made[:2], (800, 1 << 42), strict=True):
        with pytest.raises(OutOfMemory, match=f"needs {need} bytes, 800 of the session's 1073") as caught:
            session.fetch(poisoned)
        assert caught.value.op
    assert bytes(session.fetch(made[2]).data) == bytes(4)
    session.free([handle])
    session.upload(99, TensorSpec((100,), "float32"), bytes(400))
    backend.close()
    torch.zeros(1 << 16)  # other threads and callers know no such limit
