"""Plans and values that nobody honest sends: each is refused, and another session is as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from local.both import Program

from genie import codec
from genie.bindings import Prediction, parameters
from genie.errors import CodecError, GenieError, GraphError, NodeError, OutOfMemory, PlanError, ProtocolError, RemoteOpError
from genie.graph import Arg, Const, Graph, Input, Many, Node, Ref, ScalarTensor, TensorSpec
from genie.schedule import Scheduler
from genie_backend_local import LocalBackend, LocalSession

_MEMORY = 1 << 20
_X = TensorSpec((4,), "float32")
_FILLED = b"\x5a" * 4096  # what a careless allocator would give the next session
_SELF = Const("device", "self")


@pytest.fixture
def backend() -> Iterator[LocalBackend]:
    backend = LocalBackend(memory_limit_gb=_MEMORY / (1 << 30), batching=False)
    yield backend
    backend.close()


@pytest.fixture
def session(backend: LocalBackend) -> Iterator[LocalSession]:
    """The attacker's. Another's values are looked at when it is done."""
    bystander = backend.connect(backend.devices()[-1])
    bystander.upload(1, TensorSpec((len(_FILLED),), "uint8"), _FILLED)
    attacker = backend.connect(backend.devices()[-1])
    yield attacker
    assert attacker.stats()["memory_bytes"] <= _MEMORY
    assert bytes(bystander.fetch(1).data) == _FILLED
    bystander.free([1])
    assert bystander.stats()["memory_bytes"] == 0


def _graph(target: str, tensors: int, *extra: Arg, outputs: int = 1, values: Sequence[TensorSpec] = ()) -> Graph:
    operation, _, overload = target.partition(".")
    return Graph(
        values=(*(values or (_X,) * tensors), *(_X,) * outputs),
        inputs=tuple(Input(index) for index in range(tensors)),
        steps=(
            Node(0, operation, overload, (*map(Ref, range(tensors)), *extra), tuple(range(tensors, tensors + outputs))),
        ),
        outputs=tuple(range(tensors, tensors + outputs)),
    )


def _load(session: LocalSession, graph: Graph) -> int:
    return session.load(Scheduler(devices=[session.device]).schedule(graph))


def _run(session: LocalSession, graph: Graph, inputs: Sequence[int], words: Sequence[int] | None = None) -> int:
    """The handle of the first output."""
    own = parameters(graph)
    sent = Prediction(len(inputs), own).encode([100, *inputs, *(own if words is None else words)], anew=True)
    session.execute(_load(session, graph), sent)
    return 100


def _upload(session: LocalSession, handle: int = 1, numbers: Sequence[float] = (0, 1, 2, 3)) -> None:
    data = torch.tensor(numbers, dtype=torch.float32).numpy().tobytes()
    session.upload(handle, TensorSpec((len(numbers),), "float32"), data)


# --- operators that are not for plans ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "tensors", "extra"),
    [
        ("aten::from_file", 0, ("FILE", True, 16, Const("dtype", "uint8"), None, None, None)),
        ("aten::_print", 0, ("hello",)),
        ("aten::_assert_async", 1, ()),
        ("aten::_functional_assert_async.msg", 1, ("no", 0)),
        ("aten::set_data", 1, ()),
        ("aten::requires_grad_", 1, (True,)),
        ("aten::record_stream", 1, (0,)),
        ("aten::_sparse_coo_tensor_unsafe", 2, (Many((4,)),)),
        ("aten::_nested_view_from_buffer", 1, ()),
        ("aten::data_ptr", 1, ()),
        ("aten::storage", 1, ()),
        ("aten::open", 0, ("FILE",)),
        ("prim::Print", 0, ()),
        ("prim::CallFunction", 0, ()),
        ("higher_order::cond", 1, ()),
        ("c10d::send", 1, ()),
        ("torchvision::read_file", 0, ("FILE",)),
        ("quantized::linear_prepack", 1, ()),
        ("inductor::_alloc_from_pool", 1, ()),
        ("os::system", 0, ("touch FILE",)),
    ],
)
def test_operators_off_the_list_are_refused_when_loaded(
    session: LocalSession, tmp_path: Path, target: str, tensors: int, extra: tuple[Arg, ...]
) -> None:
    file = tmp_path / "file"
    named = tuple(each.replace("FILE", str(file)) if isinstance(each, str) else each for each in extra)
    with pytest.raises(PlanError, match=f"{target.split('.')[0]}"):
        _load(session, _graph(target, tensors, *named))
    assert not file.exists()
    assert session.stats()["plans"] == 0


def test_nothing_on_the_list_takes_a_callback_a_file_or_an_object(session: LocalSession) -> None:
    """Whatever this PyTorch has: an operator that loads takes tensors, numbers, texts and names alone."""
    told = {"Tensor", "int", "float", "bool", "Scalar", "number", "SymInt", "str", "Device", "Layout", "MemoryFormat"}
    told |= {"ScalarType", "Generator", "Dimname", "DeviceObjType", "complex", "SymBool", "SymFloat"}
    strange = {}
    for schema in torch._C._jit_get_all_schemas():
        if not schema.name.startswith(("aten::", "prims::")):
            continue
        for argument in schema.arguments:
            kind = str(argument.type).removeprefix("Optional[").removeprefix("List[").strip("[]")
            if kind not in told and "Optional[" not in kind:
                strange[f"{schema.name}.{schema.overload_name}".rstrip(".")] = len(schema.arguments)
    assert len(strange) > 10  # there are some: TorchScript's own
    for target, count in strange.items():
        with pytest.raises(PlanError):
            _load(session, _graph(target, 0, *("x",) * count, outputs=1))


@pytest.mark.parametrize("device", ["cuda:0", "cpu:7", "mps", "privateuseone", "meta:1", "xla"])
def test_devices_that_are_another_session_s_are_refused(session: LocalSession, device: str) -> None:
    with pytest.raises(PlanError, match="device"):
        _load(session, _graph("aten::empty.memory_format", 0, Many((4,)), None, None, Const("device", device), None, None))


@pytest.mark.parametrize("number", ["9999999999999999999", "9223372036854775808"])
def test_generators_beyond_63_bits_are_refused(session: LocalSession, number: str) -> None:
    extra = (Many((4,)), Const("generator", number), None, None, _SELF, None)
    with pytest.raises(PlanError, match="generator"):
        _load(session, _graph("aten::rand.generator", 0, *extra))


# --- graphs that are none ---------------------------------------------------------------------------


def _node(id: int, args: tuple[Arg, ...], outputs: tuple[int, ...], **effects: object) -> Node:
    return Node(id, "aten::add", "Tensor", args, outputs, **effects)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "outputs"),
    [
        ([_node(0, (Ref(1), Ref(0)), (1,))], (1,)),  # of its own result
        ([_node(0, (Ref(2), Ref(0)), (1,)), _node(1, (Ref(1), Ref(0)), (2,))], (2,)),  # a circle of two
        ([_node(0, (Ref(0), Ref(0)), (0,)), _node(1, (Ref(0), Ref(0)), (1,))], (1,)),  # an input made again
        ([_node(0, (Ref(0), Ref(0)), (1,)), _node(1, (Ref(0), Ref(0)), (1,))], (1,)),  # a value made twice
        ([_node(1, (Ref(0), Ref(0)), (1,)), _node(0, (Ref(1), Ref(0)), (2,))], (2,)),  # numbers that go back
        ([_node(0, (Ref(0), Ref(0)), (1,), mutates=(1,))], (1,)),  # writes what it makes
        ([_node(0, (Ref(0), Ref(0)), (1,), aliases=((1, 2),))], (1,)),  # shares what it was not given
        ([_node(0, (Ref(0), Ref(0)), (1,), aliases=((-1, 0),))], (1,)),
        ([_node(0, (Ref(-1), Ref(0)), (1,))], (1,)),
        ([_node(0, (Ref(1 << 62), Ref(0)), (1,))], (1,)),
        ([_node(0, (Ref(0), Ref(0)), (1 << 40,))], (1,)),
        ([_node(0, (Ref(0), Ref(0)), (1,))], (5,)),
        ([_node(0, (Ref(0), Ref(0)), (1,), source=7)], (1,)),
    ],
)
def test_graphs_that_break_the_rules_are_refused_on_both_sides(
    session: LocalSession, steps: list[Node], outputs: tuple[int, ...]
) -> None:
    most = 1 + max(value for node in steps for value in (*node.outputs, *outputs) if value < 8)
    graph = Graph(values=(_X,) * most, inputs=(Input(0),), steps=tuple(steps), outputs=outputs)
    with pytest.raises(GraphError):
        codec.encode(graph)
    harmless = steps[0].id == 1 or any(node.mutates or node.aliases for node in steps)
    if not harmless:  # natively, too, for who comes past the first check
        with pytest.raises(PlanError):
            session._native.load(0, graph)


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 100_000,  # lists in lists
        b"\x81\xa5steps" * 50_000,
        b"\xdd\xff\xff\xff\xff",  # four billion items
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",  # a text of four gigabytes
        b"\xc6\xff\xff\xff\xff",
        b"\x81\xa6values\xdd\x7f\xff\xff\xff",
        b"\x81\xa6values\x91\x93\x92" + b"\xcf" + b"\xff" * 8 + b"\x01\xa7float32\xc0",
        b"",
    ],
)
def test_bombs_do_not_decode(body: bytes) -> None:
    from genie_fuzz.targets.codec import headed

    for kind in (1, 2):
        with pytest.raises(CodecError):
            codec.decode(headed(kind, body))


# --- memory that is not one's own -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((4,), (1,), 1),
        ((5,), (1,), 0),
        ((2,), (1 << 40,), 0),
        ((1 << 40,), (1,), 0),
        ((1 << 40,), (0,), 1 << 40),
        ((2,), (-1,), 3),
        ((4,), (1,), -1),
        ((-4,), (1,), 0),
        ((1 << 62, 1 << 62), (1, 1), 0),
        ((2, 2), ((1 << 63) - 1, (1 << 63) - 1), 0),
        ((2,), (1,), (1 << 63) - 1),
    ],
)
@pytest.mark.parametrize("target", ["aten::as_strided", "aten::as_strided_copy"])
def test_views_beyond_their_memory_fail(
    session: LocalSession, target: str, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    _upload(session)
    output = _run(session, _graph(target, 1, Many(size), Many(stride), offset), [1])
    with pytest.raises(RemoteOpError) as caught:
        session.fetch(output)
    assert caught.value.op == target
    assert session.fetch(1).data.nbytes == 16


@pytest.mark.parametrize(
    ("target", "extra"),
    [
        ("aten::take", ()),
        ("aten::index_put", None),
        ("aten::gather", (0, "index")),
        ("aten::index_select", (0, "index")),
        ("aten::embedding", ()),
        ("aten::scatter_add", (0, "index", "self")),
    ],
)
@pytest.mark.parametrize("index", [4, -5, 1 << 40, -(1 << 62)])
def test_indices_beyond_their_memory_fail(
    session: LocalSession, target: str, extra: tuple[object, ...] | None, index: int
) -> None:
    program = Program()
    x = program.input(torch.zeros(4, 1) if target == "aten::embedding" else torch.zeros(4))
    at = program.input(torch.tensor([index]))
    named = {"index": at, "self": x}
    if extra is None:
        made = program.call(target, x, Many((at,)), x, False)
    elif not extra:
        made = program.call(target, x, at)
    else:
        made = program.call(target, x, *(named.get(each, each) for each in extra))  # type: ignore[call-overload, arg-type]
    for handle, tensor in enumerate(program.given, 1):
        spec = TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        session.upload(handle, spec, tensor.numpy().tobytes())
    output = _run(session, program.graph(made), [1, 2])
    with pytest.raises(RemoteOpError, match="(?i)index|range"):
        session.fetch(output)


@pytest.mark.parametrize(
    ("target", "extra"),
    [
        ("aten::empty.memory_format", (Many((4096,)), Const("dtype", "uint8"), None, _SELF, None, None)),
        ("aten::empty_strided", (Many((4096,)), Many((1,)), Const("dtype", "uint8"), None, _SELF, None)),
        ("aten::empty_permuted", (Many((4096,)), Many((0,)), Const("dtype", "uint8"), None, _SELF, None)),
        ("aten::new_empty", (Ref(0), Many((4096,)), None, None, None, None)),
        ("aten::empty_like", (Ref(0), None, None, None, None, None)),
        ("aten::resize", (Ref(0), Many((8192,)), None)),
    ],
)
def test_memory_that_was_another_session_s_is_not_seen(
    backend: LocalBackend, session: LocalSession, target: str, extra: tuple[Arg, ...]
) -> None:
    operation, _, overload = target.partition(".")
    given = isinstance(extra[0], Ref)
    graph = Graph(
        values=(TensorSpec((4096,), "uint8"),) * (1 + given),
        inputs=(Input(0),) * given,
        steps=(Node(0, operation, overload, extra, (int(given),)),),
        outputs=(int(given),),
    )
    if given:
        session.upload(1, TensorSpec((4096,), "uint8"), bytes(4096))
    plan = _load(session, graph)
    sender = Prediction(given, parameters(graph))
    for handle in range(100, 110):
        victim = backend.connect(session.device)
        for each in range(1, 9):
            victim.upload(each, TensorSpec((4096 << each % 2,), "uint8"), _FILLED * (1 + each % 2))
        doubled = _graph("aten::add.Tensor", 2, 1, values=(TensorSpec((4096,), "uint8"),) * 2)
        _run(victim, doubled, [2, 4])  # memory of the operators' own allocator, too
        victim.close()
        session.execute(plan, sender.encode([handle, *([1] * given), *parameters(graph)]))
        assert not any(bytes(session.fetch(handle).data))


def test_nor_between_the_elements_of_an_upload(backend: LocalBackend, session: LocalSession) -> None:
    around = _graph("aten::as_strided", 1, Many((1024,)), Many((1,)), 0)
    for handle in range(100, 110):
        victim = backend.connect(session.device)
        for each in range(1, 9):
            victim.upload(each, TensorSpec((4096,), "uint8"), _FILLED)
            _run(victim, _graph("aten::add.Tensor", 2, 1, values=(TensorSpec((4096,), "uint8"),) * 2), [each, each])
            victim.free([100])
        victim.close()
        session.upload(handle + 100, TensorSpec((2,), "float32", (1023,)), b"\x01" * 8)
        output = _run(session, around, [handle + 100])
        assert bytes(session.fetch(output).data) == b"\x01" * 4 + bytes(4088) + b"\x01" * 4
        session.free([output, handle + 100])


# --- uploads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "stride", "error"),
    [
        ((2, 2), (-1, 1), NodeError),
        ((2, 2), (1,), NodeError),
        ((2, 2), (1, 1, 1), NodeError),
        ((2, 2), (1 << 62, 1), NodeError),
        ((2, 2), (1 << 40, 1), OutOfMemory),
        ((2, 2), ((1 << 63) - 1, (1 << 63) - 1), NodeError),
    ],
)
def test_uploads_with_strides_that_reach_too_far_are_refused(
    session: LocalSession, shape: tuple[int, ...], stride: tuple[int, ...], error: type[GenieError]
) -> None:
    with pytest.raises(error):
        session.upload(1, TensorSpec(shape, "float32", stride), bytes(16))
    assert session.stats()["values"] == 0


@pytest.mark.parametrize("stride", [(0, 0), (1, 1), (0, 1), (2, 2)])
def test_uploads_that_overlap_themselves_have_the_memory_they_say(session: LocalSession, stride: tuple[int, int]) -> None:
    session.upload(1, TensorSpec((2, 2), "float32", stride), torch.arange(4.0).numpy().tobytes())
    output = _run(session, _graph("aten::add_.Tensor", 1, ScalarTensor("int64", 1, True), 1), [1])
    repeats = 0 in stride  # one element in several places
    with pytest.raises(RemoteOpError) if repeats else contextlib.nullcontext():
        assert session.fetch(output).data.nbytes == 16


@pytest.mark.parametrize("shape", [(1 << 62, 8), (1 << 61,), (1 << 40,), (1 << 62, 0, 1 << 62), (1 << 62, 1 << 62, 0)])
def test_values_too_large_are_refused_before_memory_is_asked_for(session: LocalSession, shape: tuple[int, ...]) -> None:
    with pytest.raises(GenieError):
        session.allocate(TensorSpec(shape, "float32"))


@pytest.mark.parametrize("size", [(1 << 17) + 1, 1 << 30, 1 << 45, (1 << 63) - 1])
def test_operators_that_ask_for_too_much_fail_before_they_have_it(session: LocalSession, size: int) -> None:
    extra = (Many((size,)), 1.0, Const("dtype", "float64"), None, _SELF, None)
    output = _run(session, _graph("aten::full", 0, *extra), [])
    with pytest.raises(RemoteOpError):
        session.fetch(output)
    assert session.stats()["memory_bytes"] == 0


# --- handles, bindings and generators ---------------------------------------------------------------


@pytest.mark.parametrize("first", [0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1, 2])
def test_results_have_no_handle_that_is_taken_or_none(session: LocalSession, first: int) -> None:
    _upload(session, 1)
    _upload(session, 3)
    graph = _graph("aten::split.Tensor", 1, 2, 0, outputs=2)
    sent = Prediction(1, parameters(graph)).encode([first, 1, *parameters(graph)], anew=True)
    with pytest.raises(NodeError):
        session.execute(_load(session, graph), sent)
    assert session.stats()["values"] == 2


@pytest.mark.parametrize(
    "bindings",
    [b"", b"\xff" * 11, b"\x05", b"\x01\x00", b"\x01\x09\x00", b"\x06\x01\x01\x01\x01", b"\x00\x00", b"\x80" * 1000],
)
def test_bindings_that_are_none_are_refused_and_change_nothing(session: LocalSession, bindings: bytes) -> None:
    _upload(session)
    graph = _graph("aten::neg", 1)
    plan = _load(session, graph)
    with pytest.raises(ProtocolError):
        session.execute(plan, bindings)
    session.execute(plan, Prediction(1, ()).encode([100, 1]))
    assert bytes(session.fetch(100).data) == torch.tensor([-0.0, -1, -2, -3]).numpy().tobytes()


@pytest.mark.parametrize("state", [b"", b"x", bytes(5055), bytes(5057), b"\xff" * 5056, bytes(5056), b"\xff" * (1 << 20)])
def test_states_that_are_none_are_refused_and_draws_go_on(session: LocalSession, state: bytes) -> None:
    session.seed(0, 5)
    before = session.generator_state(0)
    with pytest.raises(NodeError):
        session.set_generator_state(0, state)
    assert session.generator_state(0) == before
    extra = (Many((1000,)), Const("dtype", "float32"), None, _SELF, None)
    drawn = torch.frombuffer(bytearray(session.fetch(_run(session, _graph("aten::rand", 0, *extra), [])).data), dtype=torch.float32)
    assert torch.equal(drawn, torch.rand(1000, generator=torch.Generator().manual_seed(5)))


def test_a_session_s_generators_are_counted(session: LocalSession) -> None:
    for number in range(1 << 16):
        session.seed(number, 0)
    with pytest.raises(NodeError, match="65536 generators"):
        session.seed(1 << 16, 0)
    with pytest.raises(NodeError, match="65536 generators"):
        session.generator_state((1 << 63) - 1)
    session.seed(7, 3)  # one that is there
