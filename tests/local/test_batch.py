"""Sessions whose decode steps run together, beside the same work alone: every bit is the same, and every failure is
its own session's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import pytest
import torch
from local.both import Program, bits, data_of, spec_of, tensor_of

from genie.bindings import Prediction, parameters
from genie.errors import NodeError, OutOfMemory, RemoteOpError
from genie.graph import Graph, Many, Ref, Semantics
from genie.loops import Loop
from genie.schedule import Scheduler
from genie_backend_local import LocalBackend, LocalSession
from genie_backend_local.native import NativeBatcher, load

DEADLINE = 60.0
WIDTH = 96
HUGE = 1 << 14  # outputs of a product whose weight is larger than any block

T = TypeVar("T")


class Client:
    """A session that shares weights with the first of its kind."""

    def __init__(self, batcher: NativeBatcher | None, limit: int = 0) -> None:
        device = LocalBackend(batching=False).devices()[-1]
        self.session = LocalSession(device, load().Session("cpu", "cpu", limit, None, batcher))
        self.session.profile(0.0)  # a timed execution runs alone
        self._next = 1
        self._predictions: dict[int, Prediction] = {}

    def handles(self, count: int = 1) -> int:
        self._next += count
        return self._next - count

    def put(self, tensor: torch.Tensor) -> int:
        handle = self.handles()
        self.session.upload(handle, spec_of(tensor), data_of(tensor))
        return handle

    def adopt(self, other: Client, handle: int) -> int:
        mine = self.handles()
        self.session.adopt(mine, other.session.share(handle))
        return mine

    def execute(self, graph: Graph, inputs: Sequence[int], words: Sequence[int] | None = None) -> list[int]:
        plan = self.session.load(Scheduler(devices=[self.session.device]).schedule(graph))
        prediction = self._predictions.setdefault(plan, Prediction(len(graph.inputs), parameters(graph)))
        first = self.handles(len(graph.outputs))
        self.session.execute(plan, prediction.encode([first, *inputs, *(words or parameters(graph))]))
        return list(range(first, first + len(graph.outputs)))

    def get(self, handle: int) -> torch.Tensor:
        return tensor_of(self.session.fetch(handle))

    @property
    def batched(self) -> tuple[int, int, int]:
        """Executions with others, products with others, and how many were together at most."""
        stats = self.session.stats()
        return stats["batched_executions"], stats["batched_steps"], stats["largest_batch"]


def batcher(fewest: int, *, exact: bool = True, lanes: int = 1, patience: float = DEADLINE) -> NativeBatcher:
    """Where an execution waits for so many."""
    return load().Batcher(exact=exact, lanes=lanes, fewest=fewest, patience=patience)


def together(*work: Callable[[], T]) -> list[T]:
    """Each on a thread of its own; what they gave."""
    results: list[T] = []
    errors: list[BaseException] = []
    given: dict[int, T] = {}

    def run(number: int) -> None:
        try:
            given[number] = work[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "never ended"
    if errors:
        raise errors[0]
    results += [given[number] for number in range(len(work))]
    return results


def decoding(graph: Graph, phase: str = "decode") -> Graph:
    steps = tuple(msgspec.structs.replace(step, semantics=Semantics(phase=phase)) for step in graph.steps)
    return msgspec.structs.replace(graph, steps=steps)


class Step:
    """A step of a decoder in small: products of each kind, a cache that grows, a position that moves."""

    def __init__(self, dtype: torch.dtype = torch.float32, rows: int = 1, width: int = WIDTH) -> None:
        torch.manual_seed(0)
        program = Program()
        self.rows, self.width, self.dtype = rows, width, dtype
        x, cache = program.input(self.activation(0)), program.input(self.cache(1))
        self.weights = [
            torch.randn(width, width, dtype=dtype) / width**0.5,
            torch.randn(width, dtype=dtype),
            torch.randn(width, 4 * width, dtype=dtype) / width**0.5,
            torch.randn(4 * width, dtype=dtype),
            torch.randn(4 * width, width, dtype=dtype) / width,
            torch.randn(HUGE + 7, width, dtype=dtype),
        ]
        query, query_bias, up, up_bias, down, head = map(program.input, self.weights)
        q = program.call("aten::linear", x, query, query_bias)
        grown = program.call("aten::cat", Many((cache, q)), 0)
        self.position = program.call("aten::slice.Tensor", grown, 0, 0, 1 << 40, 1)
        mean = program.call("aten::mean.dim", self.position, Many((0,)), True, None)
        hidden = program.call("aten::add.Tensor", q, mean, 1)
        hidden = program.call("aten::relu", program.call("aten::addmm", up_bias, hidden, up, 1, 1))
        out = program.call("aten::mm", hidden, down)
        self.program = program
        logits = program.call("aten::linear", out, head, None)
        token = program.call("aten::argmax", logits, -1, False)
        self.graph = decoding(program.graph(logits, grown, token))

    def activation(self, seed: int) -> torch.Tensor:
        return torch.randn(
            self.rows, self.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
        ).to(self.dtype)

    def cache(self, length: int) -> torch.Tensor:
        return torch.arange(length * self.width, dtype=torch.float32).reshape(length, self.width).sin().to(self.dtype)

    def clients(self, shared: NativeBatcher | None, count: int) -> list[tuple[Client, list[int]]]:
        """Each with an activation and a cache length of its own, all with the same weights."""
        made: list[tuple[Client, list[int]]] = []
        for number in range(count):
            client = Client(shared)
            own = [client.put(self.activation(number)), client.put(self.cache(number + 1))]
            if not made:
                weights = [client.put(weight) for weight in self.weights]
            else:
                weights = [client.adopt(made[0][0], handle) for handle in made[0][1][2:]]
            made.append((client, own + weights))
        return made


def outcomes(clients: Sequence[tuple[Client, list[int]]], graph: Graph) -> list[list[bytes]]:
    def one(client: Client, inputs: list[int]) -> list[bytes]:
        return [bits(client.get(handle)) for handle in client.execute(graph, inputs)]

    return together(*(lambda client=client, inputs=inputs: one(client, inputs) for client, inputs in clients))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
def test_together_gives_the_bits_of_alone(count: int, dtype: torch.dtype, rows: int) -> None:
    step = Step(dtype, rows)
    expected = outcomes(step.clients(None, count), step.graph)
    clients = step.clients(batcher(count), count)
    for _ in range(4):  # each way of doing a product is tried in turn
        assert outcomes(clients, step.graph) == expected
    for client, _ in clients:
        assert client.batched == (4, 4 * 4, count)


def test_stacked_rows_give_equal_tokens_and_close_values() -> None:
    step = Step()
    expected = [
        [torch.frombuffer(bytearray(one), dtype=torch.float32) for one in its[:2]] + [its[2]]
        for its in outcomes(step.clients(None, 4), step.graph)
    ]
    clients = step.clients(batcher(4, exact=False), 4)
    for _ in range(12):
        for its, wanted in zip(outcomes(clients, step.graph), expected, strict=True):
            for one, other in zip(its[:2], wanted[:2], strict=True):
                torch.testing.assert_close(
                    torch.frombuffer(bytearray(one), dtype=torch.float32), other, rtol=1e-4, atol=1e-4
                )
            assert its[2] == wanted[2]
    assert clients[0][0].batched == (12, 12 * 4, 4)


def test_what_is_no_decoding_runs_alone() -> None:
    step = Step()
    clients = step.clients(batcher(2), 2)
    prefill = decoding(step.graph, "prefill")
    for client, inputs in clients:
        client.execute(prefill, inputs)  # would wait for the other
        assert client.batched == (0, 0, 0)


def test_other_weights_are_another_model() -> None:
    step = Step()
    shared = batcher(2, patience=0.01)
    (one, inputs), _ = step.clients(shared, 2)
    other, its = step.clients(shared, 1)[0]  # equal weights, in memory of its own
    together(lambda: one.execute(step.graph, inputs), lambda: other.execute(step.graph, its))
    assert one.batched == other.batched == (0, 0, 0)


def test_parameters_may_differ() -> None:
    """Plans recorded at different lengths run together, each with its own."""
    step = Step()
    words = list(parameters(step.graph))
    at = words.index(1 << 40)
    shorter = [[*words[:at], number + 1, *words[at + 1 :]] for number in range(2)]
    alone = step.clients(None, 2)
    expected = [
        [bits(client.get(handle)) for handle in client.execute(step.graph, inputs, its)]
        for (client, inputs), its in zip(alone, shorter, strict=True)
    ]
    assert expected[0] != outcomes(alone, step.graph)[0] or expected[1] != outcomes(alone, step.graph)[1]
    clients = step.clients(batcher(2), 2)
    made = together(
        *(
            lambda client=client, inputs=inputs, its=its: [
                bits(client.get(handle)) for handle in client.execute(step.graph, inputs, its)
            ]
            for (client, inputs), its in zip(clients, shorter, strict=True)
        )
    )
    assert made == expected
    assert clients[0][0].batched == (1, 4, 2)


def test_what_comes_between_the_products_may_differ() -> None:
    """As what follows them: one takes the likeliest, another draws."""
    step = Step()
    program = step.program
    logits = Ref(step.graph.outputs[0])
    share = program.call("aten::_softmax", logits, -1, False)
    drawn = program.call("aten::multinomial", share, 1, False, None)
    program.call("aten::neg", step.position)
    drawing = decoding(program.graph(logits, Ref(step.graph.outputs[1]), drawn))

    def run(pairs: list[tuple[Client, list[int]]]) -> list[list[bytes]]:
        graphs = (step.graph, drawing)

        def one(number: int) -> list[bytes]:
            client, inputs = pairs[number]
            client.session.seed(0, 7)
            return [bits(client.get(handle)) for handle in client.execute(graphs[number], inputs)]

        return together(lambda: one(0), lambda: one(1))

    expected = run(step.clients(None, 2))
    clients = step.clients(batcher(2), 2)
    assert run(clients) == expected
    assert clients[0][0].batched == clients[1][0].batched == (1, 4, 2)


def test_one_client_s_failure_is_its_own() -> None:
    step = Step()
    expected = outcomes(step.clients(None, 3), step.graph)
    clients = step.clients(batcher(3), 3)
    client, inputs = clients[1]
    bad = client.put(torch.ones(2, 5))  # of no such width: its products fail, and the cache cannot grow

    def failing() -> list[bytes]:
        outputs = client.execute(step.graph, [bad, *inputs[1:]])
        with pytest.raises(RemoteOpError) as caught:
            client.get(outputs[0])
        assert (caught.value.op, caught.value.step) == ("aten::linear", 0)
        with pytest.raises(RemoteOpError):
            client.get(outputs[2])
        return []

    def fine(number: int) -> list[bytes]:
        its, given = clients[number]
        return [bits(its.get(handle)) for handle in its.execute(step.graph, given)]

    made = together(lambda: fine(0), failing, lambda: fine(2))
    assert [made[0], made[2]] == [expected[0], expected[2]]
    assert clients[0][0].batched == (1, 4, 3)
    assert client.batched == (1, 0, 3)
    assert outcomes(clients, step.graph) == expected  # and it goes on


def test_poisoned_inputs_poison_nobody_else() -> None:
    step = Step()
    expected = outcomes(step.clients(None, 2), step.graph)
    clients = step.clients(batcher(2), 2)
    client, inputs = clients[0]
    lost = client.handles()
    client.session.poison(lost, NodeError("the sender was lost"))

    def poisoned() -> list[bytes]:
        outputs = client.execute(step.graph, [lost, *inputs[1:]])
        with pytest.raises(RemoteOpError, match="the sender was lost"):
            client.get(outputs[0])
        return []

    other, its = clients[1]
    made = together(poisoned, lambda: [bits(other.get(handle)) for handle in other.execute(step.graph, its)])
    assert made[1] == expected[1]
    assert client.session.stats()["failed_steps"] == 0


def test_memory_is_limited_each_for_itself() -> None:
    step = Step()
    expected = outcomes(step.clients(None, 2), step.graph)
    shared = batcher(2)
    (rich, inputs), _ = step.clients(shared, 2)
    weights = sum(weight.nbytes for weight in step.weights)
    poor = Client(shared, limit=weights + 8 * WIDTH * 4)  # no room for logits
    its = [poor.put(step.activation(1)), poor.put(step.cache(2))] + [poor.adopt(rich, handle) for handle in inputs[2:]]

    def starve() -> list[bytes]:
        for number in range(8):  # whatever way the products take
            outputs = poor.execute(step.graph, its)
            with pytest.raises(OutOfMemory):
                poor.get(outputs[0])
            poor.session.free(outputs)
            assert poor.session.stats()["failed_steps"] == number + 1
        return []

    def feast() -> list[bytes]:
        for _ in range(8):
            outputs = rich.execute(step.graph, inputs)
            found = [bits(rich.get(handle)) for handle in outputs]
            assert found == expected[0]
            rich.session.free(outputs)
        return []

    together(starve, feast)
    assert rich.session.stats()["failed_steps"] == 0
    assert rich.batched[0] == 8


def test_memory_is_given_back() -> None:
    step = Step()
    clients = step.clients(batcher(2), 2)
    before = [client.session.stats()["memory_bytes"] for client, _ in clients]

    def one(client: Client, inputs: list[int]) -> None:
        for _ in range(6):
            client.session.free(client.execute(step.graph, inputs))

    together(*(lambda client=client, inputs=inputs: one(client, inputs) for client, inputs in clients))
    assert [client.session.stats()["memory_bytes"] for client, _ in clients] == before


def test_random_numbers_and_writes_stay_each_session_s() -> None:
    program = Program()
    x, static, weight = (
        program.input(torch.ones(1, 8)),
        program.input(torch.zeros(1, 8)),
        program.input(torch.randn(8, 8)),
    )
    y = program.call("aten::linear", x, weight, None)
    noise = program.call("aten::rand_like", y, None, None, None, None, None)
    y = program.call("aten::mul.Tensor", y, noise)
    program.write("aten::add_.Tensor", static, y, 1, to=[static])
    program.write("aten::mul_.Tensor", weight, y, to=[weight])  # copied by who writes: the others' stays
    out = program.call("aten::linear", static, weight, None)
    graph = decoding(program.graph(out))

    def clients(shared: NativeBatcher | None) -> list[tuple[Client, list[int]]]:
        made: list[tuple[Client, list[int]]] = []
        for number in range(2):
            client = Client(shared)
            client.session.seed(0, number)
            own = [client.put(tensor) for tensor in program.given[:2]]
            weight = client.adopt(made[0][0], made[0][1][2]) if made else client.put(program.given[2])
            made.append((client, [*own, weight]))
        return made

    def results(shared: NativeBatcher | None) -> list[list[bytes]]:
        pairs = clients(shared)
        outputs = outcomes(pairs, graph)
        return [
            its + [bits(client.get(handle)) for handle in inputs]
            for its, (client, inputs) in zip(outputs, pairs, strict=True)
        ]

    expected = results(None)
    assert expected[0] != expected[1]
    assert results(batcher(2)) == expected


def test_loops_run_together_until_one_ends() -> None:
    """Iteration by iteration; whoever stops earlier leaves the others in peace."""
    step = Step()
    how = Loop(carries=((1, 1),), emit=(2,))
    times = (3, 4, 5)

    def run(pairs: list[tuple[Client, list[int]]]) -> list[list[bytes]]:
        def one(number: int) -> list[bytes]:
            client, inputs = pairs[number]
            plan = client.session.load(Scheduler(devices=[client.session.device]).schedule(step.graph))
            words = [client.handles(3), *inputs, *parameters(step.graph)]
            bindings = Prediction(len(inputs), parameters(step.graph)).encode(words, anew=True)
            told = [bytes(token) for (token,) in client.session.loop(plan, bindings, how, times[number])]
            return [*told, bits(client.get(words[0] + 1))]

        return together(*(lambda number=number: one(number) for number in range(3)))

    expected = run(step.clients(None, 3))
    clients = step.clients(batcher(2, patience=0.5), 3)
    assert run(clients) == expected  # the last ones alone, when nobody is left to come
    assert sum(client.batched[0] for client, _ in clients) > 0


def test_nobody_is_waited_for_longer_than_the_patience() -> None:
    step = Step()
    ((client, inputs),) = step.clients(batcher(2, patience=0.01), 1)
    for _ in range(3):
        client.session.free(client.execute(step.graph, inputs))
    assert client.batched == (0, 0, 0)


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_coming_and_going(lanes: int) -> None:
    """Whoever is there, in however many batches at a time: the bits are those of alone, and sessions end when they
    like."""
    step = Step()
    expected = outcomes(step.clients(None, 4), step.graph)
    clients = step.clients(batcher(1, lanes=lanes, patience=0.01), 4)

    def work(number: int) -> None:
        client, inputs = clients[number]
        for _ in range(4 * number + 1):
            outputs = client.execute(step.graph, inputs)
            assert [bits(client.get(handle)) for handle in outputs] == expected[number]
            client.session.free(outputs)
        client.session.close()

    together(*(lambda number=number: work(number) for number in range(4)))


def test_every_execution_that_is_to_be_timed_is() -> None:
    step = Step()
    clients = step.clients(batcher(2), 1)
    client, inputs = clients[0]
    client.session.profile(1.0)
    client.execute(step.graph, inputs)  # waits for nobody
    assert client.session.stats()["timed_executions"] == 1
