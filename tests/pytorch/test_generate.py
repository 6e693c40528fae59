"""``genie.generate``: the CPU's tokens, by the node's loop where that can be and step by step where not."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import genie
import genie_pytorch
from genie.errors import ConfigError, GenieError, RemoteOpError

transformers = pytest.importorskip("transformers")
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, StaticCache  # noqa: E402
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria  # noqa: E402

DEVICE = "remote_accelerator:0"
PROMPT = torch.tensor([[5, 17, 3, 88, 41, 2], [9, 1, 30, 4, 4, 60]])
Option = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()


@functools.cache
def _built(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "gpt2":
        # Wide initial weights: an untrained model otherwise says the same token for ever.
        config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4)
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return copy.deepcopy(_built(request.param))


@pytest.fixture
def gpt2() -> Any:
    return copy.deepcopy(_built("gpt2"))


class Looped:
    """How many iterations a loop ran by itself, in a ``with``."""

    def __enter__(self) -> Looped:
        self._before = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.iterations = self._now() - self._before

    @staticmethod
    def _now() -> int:
        return int(genie.get_stats().get("loop_iterations", 0))


def both(model: Any, ids: torch.Tensor = PROMPT, **options: Any) -> tuple[torch.Tensor, int]:
    """Generated natively and here, equal; the tokens, and how many of them the loop made."""
    options = {"max_new_tokens": 24, "pad_token_id": 0, **options}
    torch.manual_seed(4)
    expected = model.generate(ids, **copy.deepcopy(options))
    torch.manual_seed(4)
    with Looped() as looped:
        found = genie.generate(model, ids, **options)
    assert found.device == ids.device
    assert found.tolist() == expected.tolist()
    return found, looped.iterations


# --- as Hugging Face's ----------------------------------------------------------------------------

OPTIONS: dict[str, Option] = {
    "greedy": {},
    "sampled": {"do_sample": True},
    "warped": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
    "penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "suppressed": {"suppress_tokens": [3, 4], "forced_eos_token_id": 7},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_loop_makes_the_cpus_tokens(model: Any, options: Option) -> None:
    _, looped = both(model, **options)
    assert looped >= 16


def test_without_a_cache(model: Any) -> None:
    both(model, use_cache=False)


def test_a_static_cache(model: Any) -> None:
    assert both(model, cache_implementation="static")[1] >= 8


def test_padded_rows(model: Any) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    assert both(model, attention_mask=mask)[1] >= 16


def test_rows_end_one_by_one_and_the_loop_with_the_last(gpt2: Any) -> None:
    """Every row's own tokens at different places are made ends of sequence."""
    free = gpt2.generate(PROMPT, max_new_tokens=40, pad_token_id=0)[:, PROMPT.shape[1] :]
    ends = [int(free[0, 12]), int(free[1, 20])]
    found, _ = both(gpt2, max_new_tokens=40, eos_token_id=ends)
    assert PROMPT.shape[1] < found.shape[1] < PROMPT.shape[1] + 40


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5, 11])
def test_an_end_at_any_place(gpt2: Any, at: int) -> None:
    """In the prompt's own step, in recorded ones, and in the loop."""
    free = gpt2.generate(PROMPT[:1], max_new_tokens=20, pad_token_id=0)[0, PROMPT.shape[1] :].tolist()
    both(gpt2, PROMPT[:1], max_new_tokens=20, eos_token_id=free[at])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_any_number_of_tokens(gpt2: Any, count: int) -> None:
    both(gpt2, max_new_tokens=count)


def test_a_length_at_which_something_changes(gpt2: Any) -> None:
    """Up to ``min_new_tokens`` a step is another one; the loop ends there, and another begins."""
    free = gpt2.generate(PROMPT[:1], max_new_tokens=20, pad_token_id=0)[0, PROMPT.shape[1] :].tolist()
    _, looped = both(gpt2, PROMPT[:1], max_new_tokens=40, min_new_tokens=15, eos_token_id=free[3])
    assert looped >= 4


def test_again_and_again_from_other_prompts(gpt2: Any) -> None:
    for length in (3, 6, 4):
        assert both(gpt2, PROMPT[:, :length])[1] >= 16


def test_weights_that_change_are_sent_anew(gpt2: Any) -> None:
    first, _ = both(gpt2)
    with torch.no_grad():
        gpt2.transformer.wte.weight.mul_(-1.0)
    second, _ = both(gpt2)
    assert first.tolist() != second.tolist()


def test_a_model_and_ids_on_the_device(model: Any) -> None:
    expected = model.generate(PROMPT, max_new_tokens=24, pad_token_id=0)
    model.to(DEVICE)
    found = genie.generate(model, PROMPT.to(DEVICE), max_new_tokens=24, pad_token_id=0)
    assert found.device.type == "remote_accelerator"
    assert found.tolist() == expected.tolist()


def test_their_own_generate_with_our_loop(model: Any) -> None:
    expected = model.generate(PROMPT, max_new_tokens=24, pad_token_id=0)
    model.to(DEVICE)
    with Looped() as looped:
        found = model.generate(
            PROMPT.to(DEVICE), max_new_tokens=24, pad_token_id=0, custom_generate=genie_pytorch.decode_loop
        )
    assert found.device.type == "remote_accelerator"
    assert found.cpu().tolist() == expected.tolist()
    assert looped.iterations >= 16
    assert (found + 1).cpu().tolist() == (expected + 1).tolist()


def test_our_loop_on_a_native_model_is_theirs(gpt2: Any) -> None:
    expected = gpt2.generate(PROMPT, max_new_tokens=8, pad_token_id=0)
    found = gpt2.generate(PROMPT, max_new_tokens=8, pad_token_id=0, custom_generate=genie_pytorch.decode_loop)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_cache_is_what_it_would_be(model: Any, kind: str) -> None:
    """What is returned can be gone on with: by hand, and by another generation."""

    def twice(model: Any, ids: torch.Tensor, **more: Any) -> tuple[list[Any], list[Any]]:
        cache = StaticCache(config=model.config, max_cache_len=64) if kind == "static" else None
        options = {"max_new_tokens": 16, "pad_token_id": 0, "return_dict_in_generate": True, "past_key_values": cache}
        first = model.generate(ids, **options, **more)
        logits = model(first.sequences[:, -1:], past_key_values=copy.deepcopy(first.past_key_values)).logits
        again = model.generate(
            first.sequences, **{**options, "past_key_values": first.past_key_values, "max_new_tokens": 12}, **more
        )
        return [first.sequences.cpu(), again.sequences.cpu()], [logits.cpu()]

    tokens, logits = twice(model, PROMPT)
    there = copy.deepcopy(model).to(DEVICE)
    found, its = twice(there, PROMPT.to(DEVICE), custom_generate=genie_pytorch.decode_loop)
    assert [each.tolist() for each in found] == [each.tolist() for each in tokens]
    assert torch.equal(its[0], logits[0])


def test_a_cache_that_is_returned_ends_where_the_tokens_do(gpt2: Any) -> None:
    free = gpt2.generate(PROMPT[:1], max_new_tokens=20, pad_token_id=0)[0, PROMPT.shape[1] :].tolist()
    for at in (1, 2, 9):
        options = {"max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": free[at], "return_dict_in_generate": True}
        expected = gpt2.generate(PROMPT[:1], **options)
        found = genie.generate(gpt2, PROMPT[:1], **options)
        assert found.sequences.tolist() == expected.sequences.tolist()
        assert found.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
        key, other = found.past_key_values.layers[1].keys, expected.past_key_values.layers[1].keys
        assert torch.equal(key.cpu(), other)


class Streamer:
    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.seen.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_is_given_what_theirs_gives(gpt2: Any) -> None:
    theirs, ours, bound = Streamer(), Streamer(), Streamer()
    gpt2.generate(PROMPT[:1], max_new_tokens=20, pad_token_id=0, streamer=theirs)
    with Looped() as looped:
        genie.generate(gpt2, PROMPT[:1], max_new_tokens=20, pad_token_id=0, streamer=ours)
    assert looped.iterations >= 8
    assert ours.seen == theirs.seen
    assert ours.ended == theirs.ended == 1
    gpt2.to(DEVICE)
    decode = functools.partial(genie_pytorch.decode_loop, streamer=bound)
    gpt2.generate(PROMPT[:1].to(DEVICE), max_new_tokens=20, pad_token_id=0, streamer=bound, custom_generate=decode)
    assert bound.seen == theirs.seen


def test_tokens_as_they_come(gpt2: Any) -> None:
    expected = gpt2.generate(PROMPT, max_new_tokens=20, pad_token_id=0)[:, PROMPT.shape[1] :]
    stream = genie.generate(gpt2, PROMPT, max_new_tokens=20, pad_token_id=0, stream=True)
    assert isinstance(stream, Iterator)
    seen = []
    for token in stream:
        seen.append(token.tolist())
        assert torch.ones(1, device=DEVICE).item() == 1.0  # the session is everyone's meanwhile
        assert torch.is_grad_enabled()
    assert seen == expected.T.tolist()


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("there", [True, False])
def test_a_stream_ends_at_any_place(gpt2: Any, at: int, there: bool) -> None:
    """A step may be under way when the last token is seen: nobody sees what comes of it."""
    free = gpt2.generate(PROMPT[:1], max_new_tokens=20, pad_token_id=0)[0, PROMPT.shape[1] :].tolist()
    options: Option = {"max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": free[at]}
    expected = gpt2.generate(PROMPT[:1], **options)
    streamer = Streamer()
    if there:
        gpt2.to(DEVICE)
    ids = PROMPT[:1].to(gpt2.device)
    result = genie.generate(gpt2, ids, streamer=streamer, **options)
    assert result.device == ids.device
    assert result.tolist() == expected.tolist()
    assert [token for (token,) in streamer.seen[1:]] == expected[0, PROMPT.shape[1] :].tolist()
    seen = list(genie.generate(gpt2, ids, stream=True, **options))
    assert torch.stack(seen, 1).tolist() == expected[:, PROMPT.shape[1] :].tolist()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 2}])
def test_what_is_known_at_the_end_only_is_not_streamed(gpt2: Any, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at the end only") as caught:
        genie.generate(gpt2, PROMPT[:1], max_new_tokens=4, pad_token_id=0, stream=True, **options)
    assert "leave out stream=True" in caught.value.hint


def test_a_stream_that_is_left(gpt2: Any) -> None:
    stream = genie.generate(gpt2, PROMPT, max_new_tokens=60, pad_token_id=0, stream=True)
    for _ in range(12):
        next(stream)
    stream.close()
    both(gpt2)


# --- what is not looped ---------------------------------------------------------------------------


class _Host(StoppingCriteria):  # type: ignore[misc]
    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 12, device=input_ids.device)


class _Custom(LogitsProcessor):  # type: ignore[misc]
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return scores if self.calls < 9 else -scores


UNLOOPED: dict[str, Option] = {
    "beams": {"num_beams": 3},
    "a criterion": {"stopping_criteria": [_Host()]},
    "time": {"max_time": 1000.0},
    "a processor": {"logits_processor": LogitsProcessorList([_Custom()])},
    "a function": {"prefix_allowed_tokens_fn": lambda batch, ids: [1, 2, 3, int(ids[-1])]},
    "prompt lookup": {"prompt_lookup_num_tokens": 2, "num_return_sequences": 1},
}


@pytest.mark.parametrize("options", UNLOOPED.values(), ids=UNLOOPED.keys())
def test_other_ways_run_as_they_are(gpt2: Any, options: Option) -> None:
    ids = PROMPT[:1] if "prompt_lookup_num_tokens" in options else PROMPT
    assert both(gpt2, ids, **options)[1] == 0


def test_scores_of_each_step(gpt2: Any) -> None:
    options = {"max_new_tokens": 9, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    expected, found = gpt2.generate(PROMPT, **options), genie.generate(gpt2, PROMPT, **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for one, other in zip(found.scores, expected.scores, strict=True):
        assert torch.equal(one.cpu(), other)


def test_a_hook_sees_every_step(gpt2: Any) -> None:
    seen: list[int] = []
    gpt2.lm_head.register_forward_hook(lambda *_: seen.append(1))
    with Looped() as looped:
        genie.generate(gpt2, PROMPT, max_new_tokens=12, pad_token_id=0)
    assert (len(seen), looped.iterations) == (12, 0)


def test_it_can_be_turned_off(gpt2: Any) -> None:
    expected = gpt2.generate(PROMPT, max_new_tokens=16, pad_token_id=0)
    with Looped() as looped:
        found = genie.generate(gpt2, PROMPT, max_new_tokens=16, pad_token_id=0, offload=False)
    assert found.tolist() == expected.tolist()
    assert looped.iterations == 0


# --- callables ------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Logits from the mean of all tokens so far, and what a subclass makes of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(50, 16)
        self.out = nn.Linear(16, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        x = torch.tanh(x.cumsum(1) * self.scale(ids))
        return self.changed(self.out(x), ids)

    def scale(self, ids: torch.Tensor) -> float | torch.Tensor:
        return 0.5

    def changed(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return logits


IDS = torch.tensor([[3, 7, 11], [1, 1, 2]])


def native(program: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, count: int) -> list[list[int]]:
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, program(ids)[:, -1].float().argmax(-1)[:, None]], 1)
    return ids.tolist()


def test_a_callable_is_enough() -> None:
    program = Plain()
    with Looped() as looped:
        found = genie.generate(program, IDS, max_new_tokens=24)
    assert found.tolist() == native(program, IDS, 24)
    assert looped.iterations >= 16

    def function(ids: torch.Tensor) -> torch.Tensor:
        return program(ids)

    with Looped() as looped:
        assert genie.generate(function, IDS, max_new_tokens=24).tolist() == native(program, IDS, 24)
    assert looped.iterations >= 16
    assert not genie.is_capturing()


def test_a_callable_ends_and_streams() -> None:
    program = Plain()
    free = native(program, IDS[:1], 24)[0]
    end = free[12]
    found = genie.generate(program, IDS[:1], max_new_tokens=24, eos_token_id=end, pad_token_id=0)
    assert found.tolist()[0] == free[: free.index(end, 3) + 1]
    streamer = Streamer()
    tokens = [int(each) for each in genie.generate(program, IDS[:1], max_new_tokens=24, stream=True, streamer=streamer)]
    assert tokens == free[3:]
    assert streamer.seen == [IDS[0].tolist(), *([each] for each in tokens)]


def test_sampling_of_a_callable_is_theirs(gpt2: Any) -> None:
    """The same draws, from the same logits, as a model's own ``generate``."""
    options = {"max_new_tokens": 20, "do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.9}
    torch.manual_seed(7)
    expected = gpt2.generate(PROMPT, use_cache=False, pad_token_id=0, repetition_penalty=1.2, **options)
    torch.manual_seed(7)
    found = genie.generate(lambda ids: gpt2(ids, use_cache=False), PROMPT, repetition_penalty=1.2, **options)
    assert found.tolist() == expected.tolist()


class Looks(Plain):
    def scale(self, ids: torch.Tensor) -> float | torch.Tensor:
        return 0.5 if int(ids[0, -1].item()) % 2 else 0.25


class Squares(Plain):
    def scale(self, ids: torch.Tensor) -> float | torch.Tensor:
        return ids.shape[1] ** 2 % 7


class Uploads(Plain):
    def scale(self, ids: torch.Tensor) -> float | torch.Tensor:
        return torch.tensor([0.5 / ids.shape[1]] * 16).to(ids.device)


class From(Plain):
    """It goes another way from some length on."""

    def changed(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return -logits if ids.shape[1] > 17 else logits


class Remembers(Plain):
    """It keeps a value from call to call, where nobody looks for it."""

    last: torch.Tensor | None = None

    def changed(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        before, self.last = self.last, logits[:, -1:]
        return logits if before is None else logits + 0.1 * before


@pytest.mark.parametrize("kind", [Looks, Squares, Uploads, From, Remembers])
def test_programs_that_only_look_like_loops(kind: type[Plain]) -> None:
    program = kind()
    expected = native(copy.deepcopy(program), IDS, 30)
    with Looped() as looped:
        assert genie.generate(program, IDS, max_new_tokens=30).tolist() == expected
    if kind is From:
        assert looped.iterations >= 8  # before, or after
    else:
        assert looped.iterations == 0


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": -3}, "max_new_tokens=-3"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"temperature": 0.0}, "do_sample=False"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
    ],
)
def test_options_out_of_range(gpt2: Any, options: Option, said: str) -> None:
    for program in (gpt2, Plain()):
        with pytest.raises(ConfigError, match=said):
            genie.generate(program, PROMPT, **options)


@pytest.mark.parametrize("ids", [[1, 2], torch.ones(3), torch.ones(2, 3), torch.ones(2, 0, dtype=torch.int64)])
def test_ids_that_are_none(ids: Any) -> None:
    with pytest.raises(ConfigError, match="ids are"):
        genie.generate(Plain(), ids)


def test_an_option_nobody_knows() -> None:
    with pytest.raises(ConfigError, match="num_beams"):
        genie.generate(Plain(), IDS, num_beams=2)
    with pytest.raises(ConfigError, match="no logits"):
        genie.generate(lambda ids: ids, IDS)


class Fails(Plain):
    def changed(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        position = torch.arange(ids.shape[1] - 1, ids.shape[1], device=ids.device)
        return logits + nn.functional.embedding(position, self.table.weight[:12, :1])


def test_a_step_that_fails_in_the_loop() -> None:
    """The position is beyond the table from the thirteenth on; only the node can know."""
    with Looped() as looped, pytest.raises(IndexError) as caught:
        genie.generate(Fails(), IDS, max_new_tokens=30)
    assert looped.iterations >= 3
    assert isinstance(caught.value, RemoteOpError)
    assert "test_generate.py" in caught.value.source
    assert genie.generate(Plain(), IDS, max_new_tokens=8).tolist() == native(Plain(), IDS, 8)


def test_what_a_broken_loop_took_says_so(gpt2: Any) -> None:
    gpt2.to(DEVICE)
    cache = transformers.DynamicCache(config=gpt2.config)

    class Breaks(Streamer):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            if len(self.seen) == 12:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpt2.generate(
            PROMPT.to(DEVICE),
            past_key_values=cache,
            max_new_tokens=40,
            pad_token_id=0,
            custom_generate=functools.partial(genie_pytorch.decode_loop, streamer=Breaks()),
        )
    with pytest.raises((RuntimeError, GenieError), match="loop on the node"):
        cache.layers[0].keys.cpu()
    both(copy.deepcopy(_built("gpt2")))


def test_lengths_at_which_blocks_are_full_are_rehearsed() -> None:
    class Full(Plain):
        def changed(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return -logits if ids.shape[1] % 64 == 0 else logits

    with Looped() as looped:
        assert genie.generate(Full(), IDS, max_new_tokens=90).tolist() == native(Full(), IDS, 90)
    assert looped.iterations >= 30
