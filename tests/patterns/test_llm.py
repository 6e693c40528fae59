"""Language models: roles and phases, of transformers' models and of programs whose names say nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from patterns.recording import DEVICE, annotated, attends, forward, having, ids, kept, labelled, phases, record
from torch import Tensor, nn

import genie
from genie.graph import Graph

WORDS, WIDTH, HEADS, ROOM = 50, 32, 4, 24

Held = list[list[Tensor]]
Keep = Callable[[Held, int, Tensor, Tensor], tuple[Tensor, Tensor]]


# --- programs by hand


class Blip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a1, self.b2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c3, self.d4 = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.e5, self.f6 = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor, keep: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
        q, k, v = (e.view(*e.shape[:2], HEADS, -1).transpose(1, 2) for e in self.c3(self.a1(x)).chunk(3, -1))
        k, v = keep(k, v)
        y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = x + self.d4(y)
        return x + self.f6(F.gelu(self.e5(self.b2(x))))


class Zork(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.g7, self.h8 = nn.Embedding(WORDS, WIDTH), nn.Embedding(ROOM, WIDTH)
        self.i9 = nn.ModuleList(Blip() for _ in range(layers))
        self.j0, self.k1 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, words: Tensor, at: int, held: Held, keep: Keep) -> Tensor:
        new = words.shape[1]
        here = torch.arange(at, at + new, device=words.device)
        x = self.g7(words) + self.h8(here)
        for number, layer in enumerate(self.i9):
            room = ROOM if keep in (writes, copies) else at + new
            mask = here[:, None] >= torch.arange(room, device=words.device)
            x = layer(x, lambda k, v, n=number: keep(held, n, k, v, at), mask)
        return self.k1(self.j0(x))


def grows(held: Held, number: int, k: Tensor, v: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """Lists of what there was; the first call just keeps it."""
    if len(held) <= number:
        held.append([k, v])
    else:
        held[number] = [torch.cat([held[number][0], k], 2), torch.cat([held[number][1], v], 2)]
    return held[number][0], held[number][1]


def writes(held: Held, number: int, k: Tensor, v: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """A slice of room made before, assigned to."""
    if len(held) <= number:
        held.append([torch.zeros(k.shape[0], HEADS, ROOM, WIDTH // HEADS, device=k.device) for _ in range(2)])
    for room, new in zip(held[number], (k, v), strict=True):
        room[:, :, at : at + new.shape[2]] = new
    return held[number][0], held[number][1]


def copies(held: Held, number: int, k: Tensor, v: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """The same by ``index_copy_``."""
    if len(held) <= number:
        held.append([torch.zeros(k.shape[0], HEADS, ROOM, WIDTH // HEADS, device=k.device) for _ in range(2)])
    for room, new in zip(held[number], (k, v), strict=True):
        room.index_copy_(2, torch.arange(at, at + new.shape[2], device=k.device), new)
    return held[number][0], held[number][1]


KEEPS: dict[str, Keep] = {"grows": grows, "writes": writes, "copies": copies}


def steps(keep: Keep, prompt: Tensor, plan: list[int]) -> list[Callable[[], Tensor]]:
    """A generation as calls: the prompt, then as many words at once as ``plan`` says, each time."""
    model, held, words, at = Zork().eval().to(DEVICE), [], prompt, 0

    def call(many: int) -> Tensor:
        nonlocal words, at
        scores = model(words, at, held, keep)
        at += words.shape[1]
        words = scores[:, -1:].argmax(-1).expand(-1, many).contiguous() if many > 1 else scores[:, -1:].argmax(-1)
        return words

    return [lambda many=many: call(many) for many in (*plan, 1)]


def whole(calls: list[Callable[[], Tensor]]) -> Graph:
    return annotated(lambda: [call() for call in calls])


def one_by_one(calls: list[Callable[[], Tensor]]) -> list[str | None]:
    return [phases(annotated(call))[-1] for call in calls]


@pytest.fixture(params=KEEPS)
def keep(request: pytest.FixtureRequest) -> Keep:
    return KEEPS[request.param]


def test_a_prompt_is_read_and_words_follow(keep):
    graph = whole(steps(keep, ids(1, 6), [1, 1, 1]))
    assert phases(graph) == ["prefill", "decode", "decode", "decode"]
    assert genie.summary(graph).workload == "language_model"
    assert kept(graph, "kv_cache")
    assert labelled(graph)["lm_head"] == 4
    assert labelled(graph, "phase")["sampling"] >= 4


def test_calls_captured_by_themselves(keep):
    assert one_by_one(steps(keep, ids(1, 6), [1, 1])) == ["prefill", "decode", "decode"]


def test_a_batch(keep):
    assert phases(whole(steps(keep, ids(3, 6), [1, 1]))) == ["prefill", "decode", "decode"]


def test_a_prompt_of_one_word(keep):
    """Nothing was there before: it fills the cache, whatever its length."""
    assert phases(whole(steps(keep, ids(1, 1), [1, 1]))) == ["prefill", "decode", "decode"]


def test_several_words_are_checked_at_once(keep):
    """Speculation: a few new positions against a longer cache."""
    assert phases(whole(steps(keep, ids(1, 12), [3, 3, 1]))) == ["prefill", "decode", "decode", "decode"]


def test_a_prompt_in_pieces():
    """Chunked prefill: half of what there is then is new."""
    model, held = Zork().eval().to(DEVICE), []
    first, second = ids(1, 10), ids(1, 10)

    def program() -> list[Tensor]:
        scores = [model(first, 0, held, grows), model(second, 10, held, grows)]
        word = scores[-1][:, -1:].argmax(-1)
        return [model(word, 20, held, grows).argmax(-1)]

    assert phases(annotated(program)) == ["prefill", "prefill", "decode"]


def test_a_model_without_a_cache_reads_all_again():
    model, words = Zork().eval().to(DEVICE), ids(1, 5)

    def program() -> Tensor:
        nonlocal words
        for _ in range(3):
            scores = model(words, 0, [], lambda held, n, k, v, at: (k, v))
            words = torch.cat([words, scores[:, -1:].argmax(-1)], 1)
        return words

    graph = annotated(program)
    assert set(phases(graph)) == {"prefill"}
    assert kept(graph, "kv_cache") == []


def test_roles_of_a_layer():
    graph = annotated(steps(grows, ids(1, 6), [1])[0])
    roles = labelled(graph)
    assert len(attends(graph)) == roles["attention_projection"] == roles["mlp_up"] == roles["mlp_down"] == 2
    assert roles["residual"] == 4
    assert roles["norm"] == 5
    assert (roles["embedding"], roles["position_embedding"], roles["lm_head"]) == (1, 1, 1)


def test_sums_of_embeddings_are_no_residuals():
    graph = annotated(steps(grows, ids(1, 6), [1])[0])
    first = next(node for node in graph.nodes() if node.operation == "aten::add" and len(node.specs[0].shape) == 3)
    assert first.semantics.role is None


def test_recurrent_words():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Embedding(WORDS, 16), nn.LSTMCell(16, 16), nn.Linear(16, WORDS)

        def forward(self, word: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            state = self.b(self.a(word)[:, 0], state)
            return self.c(state[0]), state

    model, word = Loop().eval().to(DEVICE), ids(2, 1)

    def program() -> Tensor:
        here, state = word, None
        for _ in range(4):
            scores, state = model(here, state)
            here = scores.argmax(-1, keepdim=True)
        return here

    graph = annotated(program)
    assert genie.summary(graph).workload == "language_model"
    assert phases(graph)[1:] == ["decode"] * 3
    assert kept(graph, "recurrent_state")
    assert kept(graph, "kv_cache") == []


# --- transformers' models

transformers = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def built(name: str, config: str, **more) -> nn.Module:
    its = getattr(transformers, config)(**(TEXT | more))
    return getattr(transformers, name)(its).eval().to(DEVICE)


def generated(model: nn.Module, prompt: Tensor | None = None, **options) -> Graph:
    """Four words after a prompt, without a look in between."""
    prompt = ids(1, 7) if prompt is None else prompt

    def program() -> Tensor:
        return model.generate(prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, **options)

    return annotated(program)


GENERATION = ["prefill", "decode", "decode", "decode"]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(
    ("name", "config", "more"),
    [
        ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 2}),
        ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
        ("GemmaForCausalLM", "GemmaConfig", {"head_dim": 8, "num_key_value_heads": 1}),
    ],
)
def test_generation(name, config, more, cache):
    graph = generated(built(name, config, **more), cache_implementation=cache)
    assert phases(graph) == GENERATION
    assert kept(graph, "kv_cache")
    assert kept(graph, "recurrent_state") == []
    assert genie.summary(graph).workload == "language_model"
    roles = labelled(graph)
    assert roles["lm_head"] == 4
    assert len(attends(graph)) == 8
    assert roles["rotary"]


def test_attention_that_slides():
    graph = generated(built("MistralForCausalLM", "MistralConfig", num_key_value_heads=2, sliding_window=4))
    assert phases(graph) == GENERATION
    assert kept(graph, "kv_cache")


def test_written_out_attention():
    graph = generated(built("LlamaForCausalLM", "LlamaConfig", attn_implementation="eager"))
    assert phases(graph) == GENERATION
    assert labelled(graph)["attention_softmax"] == 8


def test_a_gated_mlp():
    graph = forward(built("LlamaForCausalLM", "LlamaConfig"), ids(1, 7))
    roles = labelled(graph)
    assert roles["mlp_gate"] == roles["mlp_up"] == roles["mlp_down"] == 2
    assert {node.module_path.rpartition(".")[2] for node in having(graph, "mlp_gate")} == {"gate_proj"}
    assert {node.module_path.rpartition(".")[2] for node in having(graph, "mlp_up")} == {"up_proj"}


def test_experts():
    model = built(
        "MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2
    )
    model.set_experts_implementation("eager")
    roles = labelled(forward(model, ids(1, 7)))
    assert roles["moe_router"] >= 2


def test_experts_that_are_looked_up_are_no_words():
    """Weights of the chosen experts by index: the choice is computed, and a few experts are no vocabulary."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.gate, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 4), nn.Linear(WIDTH, WORDS)
            self.experts = nn.Parameter(torch.randn(4, WIDTH, WIDTH))

        def forward(self, words: Tensor) -> Tensor:
            x = self.words(words)
            best, which = self.gate(x).softmax(-1).topk(1, -1)
            y = torch.einsum("blw,blwv->blv", x, self.experts[which[..., 0]])
            return self.head(x + y * best)

    graph = forward(Chosen(), ids(1, 7))
    assert [node.module_path for node in having(graph, "lm_head")] == ["head"]
    assert {node.module_path for node in having(graph, "moe_router")} >= {"gate"}
    assert "sampling" not in labelled(graph, "phase")


def test_state_of_a_state_space():
    graph = generated(built("MambaForCausalLM", "MambaConfig", state_size=4, conv_kernel=3))
    assert phases(graph) == GENERATION
    assert kept(graph, "recurrent_state")
    assert kept(graph, "kv_cache") == []


def test_an_encoder_and_a_decoder():
    model = built(
        "T5ForConditionalGeneration",
        "T5Config",
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    graph = generated(model)
    found = phases(graph)
    assert found[-3:] == ["decode"] * 3
    assert labelled(graph, "phase")["text_encode"] > 20
    assert genie.summary(graph).workload == "encoder_decoder"
    assert kept(graph, "kv_cache")


@pytest.mark.parametrize(
    ("name", "config", "more"),
    [
        ("BertModel", "BertConfig", {}),
        ("DistilBertModel", "DistilBertConfig", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
        ("ModernBertModel", "ModernBertConfig", {}),
    ],
)
def test_what_only_reads(name, config, more):
    graph = forward(built(name, config, **more), ids(2, 9))
    assert phases(graph) == ["text_encode"]
    assert kept(graph, "kv_cache") == []
    summary = genie.summary(graph)
    assert (summary.workload, dict(summary.encoders)) == ("text_encoder", {"text": "text_encode"})


def test_names_are_no_evidence():
    """A recording without modules, names and source lines means the same."""
    import msgspec

    model, words = built("LlamaForCausalLM", "LlamaConfig"), ids(1, 7)

    def program() -> Tensor:
        return model.generate(words, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)

    graph = record(program)
    bare = msgspec.structs.replace(
        graph,
        inputs=tuple(msgspec.structs.replace(entry, name="") for entry in graph.inputs),
        steps=tuple(msgspec.structs.replace(node, module=-1, source=-1) for node in graph.steps),
        modules=(),
        sources=(),
    )
    one, other = genie.annotate(graph), genie.annotate(bare)
    assert phases(one) == phases(other)
    assert labelled(one) == labelled(other)
    assert kept(one, "kv_cache") == kept(other, "kv_cache")


def test_an_mlp_with_its_gelu_written_out_as_gpt2_does() -> None:
    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a1, self.b2 = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a1(x)
            g = 0.5 * h * (1.0 + torch.tanh(0.7978845608 * (h + 0.044715 * torch.pow(h, 3.0))))
            return x + self.b2(g)

    roles = labelled(forward(Mlp(), torch.randn(1, 8, WIDTH)))
    assert (roles["mlp_up"], roles["mlp_down"], roles["mlp_activation"], roles["residual"]) == (1, 1, 8, 1)
