"""No parameter of a primitive of JAX's passes a rule unseen."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest

pytest.importorskip("jax")

from genie_jax import rules, translate

# What rules need not look at, and why.
PLACEMENT = {
    "memory_space",
    "sharding",
    "out_sharding",
    "devices",
    "srcs",
    "copy_semantics",
    "ctx_mesh",
    "context_mesh",
    "unconstrained_dims",
    "partition",
    "propagate_user_sharding",
    "infer_sharding_from_operands",
    "decode_shardings",
    "sharding_rule",
    "in_shardings",
    "out_shardings",
}
COMPILING = {
    "compiler_options_kvs",
    "in_layouts",
    "layout",
    "prevent_mlir_dce",
    "out_layouts",
    "inline",
    "keep_unused",
    "donated_invars",
    "name",
    "runs",
    "unroll",
}
DIFFERENTIATION = {
    *("jvp_jaxpr_fun", "num_consts", "symbolic_zeros", "fwd_jaxpr_thunk", "bwd", "out_trees"),
    *("transpose_thunk", "num_callee_consts", "num_res"),
    *("differentiated", "policy", "prevent_cse", "enable_eigvec_derivs"),
}
PROMISES = {"indices_are_sorted", "unique_indices", "is_stable", "sort_eigenvalues"}  # kept or not, the result holds
IN_THE_RESULTS_TYPE = {"preferred_element_type", "weak_type", "aggregate_to_topk", "reduction_input_size_override"}
ONE_OF_SEVERAL_WAYS = {"algorithm", "implementation", "use_magma", "precision", "recall_target"}
UNSEEN = PLACEMENT | COMPILING | DIFFERENTIATION | PROMISES | IN_THE_RESULTS_TYPE | ONE_OF_SEVERAL_WAYS
ALSO: dict[str, set[str]] = {
    "conj": {"input_dtype", "_input_dtype"},  # the operand's
    "expand_dims": {"dimensions"},  # the result's shape says them
    "squeeze": {"dimensions"},
    "random_wrap": {"impl"},  # the key's type
    "reduce": {"computation"},  # the same as its program
    "top_k": {"k"},  # the result's shape says it
    "approx_top_k": {"k"},
    "composite": {"name", "attributes", "version"},  # of another implementation of its program
    "custom_vmap_call": {"rule", "in_tree", "out_tree"},  # JAX has batched it before
    "custom_partitioning": {"in_tree", "out_tree", "static_args"},  # the rules' for placing
    "genie_remote": {"where"},
}
REFUSED = {"debug_callback", "debug_print", "io_callback", "pure_callback"}  # whatever their parameters


def _read(code: CodeType) -> set[str]:
    names: set[str] = set()
    for each in dis.get_instructions(code):
        if each.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE")):
            names.add(each.argval)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            names |= _read(each)
    return names


@pytest.mark.parametrize(
    ("name", "function"), [each for each in sorted(rules.known().items()) if each[0] not in REFUSED]
)
def test_a_rule_reads_each_parameter_or_says_why_not(name: str, function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters)
    unread = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY} - _read(function.__code__)
    assert unread <= UNSEEN | ALSO.get(name, set())


def test_a_parameter_that_no_rule_knows_is_found() -> None:
    assert translate.rules.unknown("sort", {"dimension": 0, "is_stable": True, "num_keys": 1}) == set()
    assert rules.unknown("sort", {"dimension": 0, "backwards": True}) == {"backwards"}
