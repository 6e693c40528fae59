"""How the next token is chosen, as operators where the logits are: the same ones, in the same order, that Hugging
Face's processors use, so that a seeded draw is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch

from genie.errors import ConfigError

Tensor = torch.Tensor


def check(options: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for a number out of range; options that are not there, or ``None``, are right."""
    rules: dict[str, tuple[Any, str]] = {
        "max_new_tokens": (lambda n: _is_int(n) and n >= 1, "a positive number of tokens"),
        "min_new_tokens": (lambda n: _is_int(n) and n >= 0, "a number of tokens, not negative"),
        "max_length": (lambda n: _is_int(n) and n >= 1, "a positive number of tokens"),
        "temperature": (lambda t: _is_number(t) and t > 0, "a positive number; do_sample=False is greedy"),
        "top_k": (lambda k: _is_int(k) and k >= 0, "a number of tokens; 0 is all"),
        "top_p": (lambda p: _is_number(p) and 0 < p <= 1, "above 0 and at most 1"),
        "repetition_penalty": (lambda r: _is_number(r) and r > 0, "a positive number; 1 is none"),
        "num_beams": (lambda n: _is_int(n) and n >= 1, "a positive number of beams"),
    }
    for name, (right, what) in rules.items():
        value = options.get(name)
        if value is not None and not right(value):
            raise ConfigError(f"{name}={value!r} of generate(): it is {what}")


@attrs.frozen
class Sampling:
    """Options for a program that is a mere callable."""

    max_new_tokens: int = 20
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Sampling:
        """Raises :class:`ConfigError` for an option that is unknown here."""
        check(options)
        known = {each.name for each in attrs.fields(cls)}
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ConfigError(
                f"generate() of a callable takes no {unknown[0]!r}", hint=f"it takes {', '.join(sorted(known))}"
            )
        given = {name: value for name, value in options.items() if value is not None}
        ends = given.get("eos_token_id")
        if ends is not None:
            given["eos_token_id"] = (ends,) if _is_int(ends) else tuple(int(each) for each in ends)
        return cls(**given)

    @property
    def ends(self) -> tuple[int, ...]:
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else ()

    @property
    def pad(self) -> int:
        return self.pad_token_id if self.pad_token_id is not None else self.ends[0] if self.ends else 0

    def choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The next token of each row, (batch,), from logits of shape (batch, vocabulary)."""
        scores = logits.to(copy=True, dtype=torch.float32)
        if self.repetition_penalty != 1.0:
            seen = torch.gather(scores, 1, ids)
            seen = torch.where(seen < 0, seen * self.repetition_penalty, seen / self.repetition_penalty)
            scores = scores.scatter(1, ids, seen)
        if not self.do_sample:
            return scores.argmax(-1)
        if self.temperature != 1.0:
            scores = scores / self.temperature
        if self.top_k:
            least = torch.topk(scores, min(self.top_k, scores.shape[-1]))[0][..., -1, None]
            scores = scores.masked_fill(scores < least, -math.inf)
        if self.top_p < 1.0:
            ordered, indices = torch.sort(scores, descending=False)
            unlikely = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            unlikely[..., -1:] = 0
            scores = scores.masked_fill(unlikely.scatter(1, indices, unlikely), -math.inf)
        return torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
