"""The table of operators that draw random numbers, against PyTorch's own tags."""

from __future__ import annotations

import torch

from genie.graph.random import _DRAWS, _OVERLOADS, DRAWING


def _overloads(name):
    namespace, _, rest = name.partition("::")
    base, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), base, None)
    return getattr(packet, overload or "default", None)


def _tagged():
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith(("aten::", "prims::")):
            operator = _overloads(name)
            if operator is not None and torch.Tag.nondeterministic_seeded in operator.tags:
                yield name.partition(".")[0], name.partition(".")[2], operator


def test_the_names_are_pytorchs():
    # Some of prims:: exist only once torch's compiler was imported.
    tagged = {name for name, _, _ in _tagged()}
    assert {name for name in DRAWING if name.startswith("aten::")} == {each for each in tagged if "aten::" in each}
    assert tagged <= DRAWING


def test_what_spares_a_draw_is_where_the_schemas_have_it():
    for name, overload, operator in _tagged():
        if name.startswith("prims::"):
            continue
        spare = _OVERLOADS.get((name[6:], overload)) or _DRAWS[name[6:]]
        arguments = [argument.name for argument in operator._schema.arguments]
        if spare.flag >= 0:
            assert arguments[spare.flag] in ("train", "training"), (name, overload)
        if spare.probability >= 0:
            assert arguments[spare.probability] in ("dropout_p", "dropout"), (name, overload)
