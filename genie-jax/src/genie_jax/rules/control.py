"""Control flow: branches and loops, which become regions of the graph and run where the program does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from genie_jax import keys
from genie_jax.dtypes import is_key, torch_dtype
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.nested import of_platform


@rule("cond")
def _cond(here: Equation, which: Tensor, *operands: Tensor, branches: Any, branches_platforms: Any = None) -> Any:
    if branches_platforms is not None:  # of other platforms there may be no translation
        return here.translate(branches[of_platform(branches_platforms)], *operands)
    last = len(branches) - 1
    known = here.numbers[0] if last else 0
    if known is not None:
        return here.translate(branches[int(known) if 0 <= known <= last else last], *operands)
    # A number of no branch is the last one's, as for XLA.
    if last == 1:
        which = which if which.dtype == torch.bool else torch.ne(which, 0)
        branches = branches[::-1]  # true is the first of a region's and the second of JAX's
    else:
        which = torch.where((which >= 0) & (which <= last), which, last)
    return here.regions.cond(which, [partial(here.translate, branch, *operands) for branch in branches])


@rule("scan")
def _scan(
    here: Equation,
    *operands: Tensor,
    jaxpr: Any,
    length: int,
    reverse: bool,
    num_consts: int,
    num_carry: int,
    unroll: Any,
) -> Sequence[Tensor]:
    constants, init = operands[:num_consts], operands[num_consts : num_consts + num_carry]

    def body(*given: Tensor) -> Sequence[Tensor]:
        return here.translate(jaxpr, *constants, *given)

    return here.regions.scan(body, init, operands[num_consts + num_carry :], length=length, reverse=reverse)


@rule("while")
def _while(
    here: Equation, *operands: Tensor, cond_jaxpr: Any, body_jaxpr: Any, cond_nconsts: int, body_nconsts: int
) -> Any:
    of_condition, of_body = operands[:cond_nconsts], operands[cond_nconsts : cond_nconsts + body_nconsts]

    def truths(*carried: Tensor) -> Tensor:
        (made,) = here.translate(cond_jaxpr, *of_condition, *carried)
        return made

    def condition(*carried: Tensor) -> Tensor:
        return torch.any(truths(*carried)) if batched else truths(*carried)

    def body(*carried: Tensor) -> Sequence[Tensor]:
        made = here.translate(body_jaxpr, *of_body, *carried)
        if not batched:
            return made
        going = truths(*carried)
        return [
            torch.where(going.reshape(*going.shape, *(1,) * (new.ndim - going.ndim)), new, old)
            for new, old in zip(made, carried, strict=True)
        ]

    # Under vmap: one truth for each loop of the batch, which goes on until the last has ended.
    batched = bool(cond_jaxpr.out_avals[0].shape)
    return here.regions.while_loop(condition, body, operands[cond_nconsts + body_nconsts :])


@rule("empty2")
def _empty(here: Equation, *, dtype: Any, memory_space: Any) -> Tensor:
    """What a scan's derivative begins with where nothing is known yet: zero, as in XLA."""
    if is_key(dtype):
        return keys.of_words(torch.zeros(keys.key_shape(dtype), dtype=torch.int32))
    return torch.zeros((), dtype=torch_dtype(dtype))
