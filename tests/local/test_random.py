"""Random draws equal PyTorch's after the same seed, and nobody disturbs anybody."""

from __future__ import annotations

import threading

import pytest
import torch
from local.both import Both, Program, data_of, tensor_of

from genie.errors import NodeError
from genie.graph import Const, Graph, Many, Ref
from genie_backend_local import LocalBackend, LocalSession

SELF = Const("device", "self")
F32 = Const("dtype", "float32")


def draws() -> Program:
    """One of each kind: a factory, in place, an operator that takes a generator, one that takes none."""
    program = Program()
    x = program.input(torch.linspace(0.1, 0.9, 64))
    program.write("aten::normal_", x, 0.0, 1.0, None, to=[x])
    program.call("aten::randn", Many((33,)), F32, None, SELF, False)
    program.call("aten::bernoulli.p", x, 0.5, None)
    program.calls("aten::native_dropout", 2, x, 0.5, True)
    program.call("aten::dropout", x, 0.25, True)
    program.call("aten::randperm", 50, Const("dtype", "int64"), None, SELF, False)
    program.call("aten::randint", 1000, Many((7,)), Const("dtype", "int64"), None, SELF, False)
    program.call("aten::rand_like", x)
    return program


def natively(seed: int) -> list[torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.linspace(0.1, 0.9, 64).normal_()
        drawn = [torch.randn(33), torch.bernoulli(x, 0.5), *torch.native_dropout(x, 0.5, True)]
        drawn += [torch.dropout(x, 0.25, True), torch.randperm(50), torch.randint(1000, (7,)), torch.rand_like(x)]
        return [x, *drawn, torch.get_rng_state()]


def graph_of(program: Program) -> Graph:
    return program.graph(*(Ref(value) for value in range(len(program.values))))


@pytest.mark.parametrize("seed", [0, 1, 42, -1, (1 << 63) + 5])
def test_draws_equal_pytorch_s(both: Both, seed: int) -> None:
    program = draws()
    both.session.seed(0, seed)
    both.reference.generator(0).manual_seed(seed)
    made = both.check(*both.execute(graph_of(program), [both.put(program.given[0])]))
    *expected, state = natively(seed)
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one, other)
    assert both.session.generator_state(0) == bytes(state.numpy())


def test_an_unseeded_session_draws_as_a_new_generator(session: LocalSession) -> None:
    assert session.generator_state(0) == bytes(torch.Generator().get_state().numpy())


def test_explicit_generators_are_the_session_s_own(both: Both) -> None:
    program = Program()
    x = program.input(torch.zeros(8))
    program.write("aten::normal_", x, 0.0, 1.0, Const("generator", "7"), to=[x])
    y = program.call("aten::rand.generator", Many((5,)), Const("generator", "7"), F32, None, SELF, False)
    both.session.seed(7, 11)
    both.reference.generator(7).manual_seed(11)
    before = both.session.generator_state(0)
    both.run(program, x, y)
    assert both.session.generator_state(0) == before


def test_state_goes_out_and_back(both: Both) -> None:
    program = Program()
    y = program.call("aten::randn", Many((5,)), F32, None, SELF, False)  # odd: leaves half a pair of normals behind
    graph = program.graph(y)
    both.session.seed(0, 3)
    (_,) = both.execute(graph, [])
    state = both.session.generator_state(0)
    (one,) = both.execute(graph, [])
    both.session.set_generator_state(0, state)
    (two,) = both.execute(graph, [])
    assert bytes(both.session.fetch(one).data) == bytes(both.session.fetch(two).data)
    generator = torch.Generator()
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    assert torch.equal(tensor_of(both.session.fetch(one)), torch.randn(5, generator=generator))


def test_a_wrong_state_is_refused(session: LocalSession) -> None:
    before = session.generator_state(0)
    with pytest.raises(NodeError):
        session.set_generator_state(0, b"short")
    assert session.generator_state(0) == before


def test_the_process_s_generator_is_left_alone(both: Both) -> None:
    program = draws()
    before = torch.get_rng_state()
    both.execute(graph_of(program), [both.put(program.given[0])])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_draw_that_fails_gives_the_process_its_state_back(both: Both) -> None:
    program = Program()
    x = program.input(torch.zeros(3, dtype=torch.int64))
    program.calls("aten::native_dropout", 2, x, 0.5, True)
    before = torch.get_rng_state()
    both.execute(program.graph(), [both.put(program.given[0])])
    assert torch.equal(torch.get_rng_state(), before)


def test_sessions_at_the_same_time_draw_their_own(backend: LocalBackend) -> None:
    expected = {seed: natively(seed)[:-1] for seed in range(4)}
    failures: list[str] = []
    start = threading.Barrier(len(expected))

    def work(seed: int) -> None:
        both = Both(backend.connect(backend.devices()[-1]))
        program = draws()
        graph = graph_of(program)
        start.wait(timeout=30)
        for _ in range(20):
            both.session.seed(0, seed)
            handle = both.handles()
            both.session.upload(handle, program.values[0], data_of(program.given[0]))
            made = both.execute_native(graph, [handle])
            for k, tensor in zip(made, expected[seed], strict=True):
                if not torch.equal(tensor_of(both.session.fetch(k)), tensor):
                    failures.append(f"seed {seed}: output {k}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
