"""A StableHLO artifact from the network, read by MLIR's parser and verifier, and held to what a node lets in.

Runs in the process that compiles: what a parser may do with hostile bytes, it does there.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from genie.graph import Abstract
from genie_compiler_xla import lapack

# As XLA's types are called in MLIR. Quantized, sub-byte and dynamic ones are none of a graph's values.
_DTYPES: Mapping[str, str] = MappingProxyType(
    {"i1": "bool", "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
    | {"complex<f32>": "complex64", "complex<f64>": "complex128"}
    | {"f8E4M3FN": "float8_e4m3fn", "f8E5M2": "float8_e5m2", "f8E4M3FNUZ": "float8_e4m3fnuz"}
    | {"f8E5M2FNUZ": "float8_e5m2fnuz", "f8E8M0FNU": "float8_e8m0fnu"}
    | {f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
    | {f"ui{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)}
)
_MOST_OPERATIONS = 1 << 18
_MOST_DEPTH = 64
_DIALECTS = ("stablehlo.", "chlo.", "func.", "builtin.module")
# What reaches outside of the program: hosts, other devices.
_REFUSED = frozenset(
    "stablehlo." + name
    for name in (
        "infeed outfeed send recv all_gather all_reduce all_to_all collective_broadcast collective_permute "
        "reduce_scatter cross-replica-sum partition_id replica_id"
    ).split()
)
# Custom calls are code of the process by name. Let in are LAPACK's (genie_compiler_xla.lapack), and operations that XLA
# has under another name; callbacks to Python are none of them.
_OPERATIONS = re.compile(r"mhlo\.(topk|erf|erf_inv|asin|acos|asinh|acosh|atanh|sinh|cosh|tan)")


class Unfit(Exception):
    """Why an artifact is not compiled."""


def bytecode(data: bytes, operands: Sequence[Abstract], results: Sequence[Abstract], bounded: bool) -> bytes:
    """The module of a portable artifact, as XLA takes it. Raises :class:`Unfit`."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import chlo, sdy, stablehlo

    context = ir.Context()
    told: list[str] = []

    def tells(said: Any) -> bool:
        told.append(str(said))
        return True

    context.attach_diagnostic_handler(tells)
    stablehlo.register_dialect(context)
    chlo.register_dialect(context)
    sdy.register_dialect(context)  # exported modules name it, and hold nothing of it
    with context:
        try:
            module = stablehlo.deserialize_portable_artifact(context, data)
            sound = module.operation.verify()
        except (ValueError, ir.MLIRError) as error:
            mine = stablehlo.get_current_version()
            why = "; ".join(told)[:512] or str(error)[:512]
            raise Unfit(f"this is no StableHLO that this node reads (its version is {mine}): {why}") from None
        if not sound:
            raise Unfit(f"the StableHLO does not verify: {'; '.join(told)[:512]}")
        _check_operations(module.operation, bounded)
        _check_interface(_entry(module), operands, results)
        _check_attributes(module.operation)
        out = io.BytesIO()
        module.operation.write_bytecode(out)
        return out.getvalue()


def _walk(operation: Any, depth: int = 0) -> Iterator[Any]:
    if depth > _MOST_DEPTH:
        raise Unfit("the StableHLO is nested too deeply")
    yield operation
    for region in operation.regions:
        for block in region.blocks:
            for each in block.operations:
                yield from _walk(each.operation, depth + 1)


def _check_operations(module: Any, bounded: bool) -> None:
    for count, operation in enumerate(_walk(module)):
        name = operation.name
        if count >= _MOST_OPERATIONS:
            raise Unfit(f"the StableHLO has more than {_MOST_OPERATIONS} operations")
        if not name.startswith(_DIALECTS) or name in _REFUSED:
            raise Unfit(f"{name} is not let in: it reaches outside of the program")
        if name == "stablehlo.custom_call":
            _check_call(operation)
        if bounded and name == "stablehlo.while":
            raise Unfit("it has loops, which nothing ends in time here: this node limits how long an execution takes")


def _check_call(operation: Any) -> None:
    from jaxlib.mlir import ir

    target = operation.attributes["call_target_name"].value
    if _OPERATIONS.fullmatch(target):
        return
    if not lapack.is_lapack(target) or "called_computations" in operation.attributes:
        raise Unfit(f"the custom call {target[:128]!r} is not let in")
    options: dict[str, int] = {}
    for name in ("mhlo.backend_config", "backend_config"):
        if name in operation.attributes:
            try:
                stated = ir.DictAttr(operation.attributes[name])
                options |= {each.name: ir.IntegerAttr(each.attr).value for each in stated}
            except ValueError:
                raise Unfit(f"the custom call {target} has options of another kind than numbers") from None
    operands, results = ([_value(each.type) for each in values] for values in (operation.operands, operation.results))
    if wrong := lapack.fault(target, operands, results, options):
        raise Unfit(f"the custom call {target} does not fit what it is given: {wrong}")


def _value(kind: Any) -> lapack.Value:
    from jaxlib.mlir import ir

    tensor = ir.RankedTensorType(kind)
    return tuple(tensor.shape), str(tensor.element_type)


def _check_attributes(module: Any) -> None:
    for name in ("mhlo.num_partitions", "mhlo.num_replicas"):
        if name in module.attributes and module.attributes[name].value != 1:
            raise Unfit("the StableHLO is of a program for several devices")


def _entry(module: Any) -> Any:
    for operation in module.body.operations:
        if operation.operation.name == "func.func" and operation.attributes["sym_name"].value == "main":
            return operation
    raise Unfit("the StableHLO has no function main")


def _check_interface(entry: Any, operands: Sequence[Abstract], results: Sequence[Abstract]) -> None:
    kinds = entry.type
    for what, made, stated in (("operand", kinds.inputs, operands), ("result", kinds.results, results)):
        if len(made) != len(stated):
            raise Unfit(f"the StableHLO has {len(made)} {what}s, the plan {len(stated)}")
        for number, (kind, wanted) in enumerate(zip(made, stated, strict=True)):
            found = _abstract(kind)
            if found != wanted:
                raise Unfit(
                    f"{what} {number} of the StableHLO is {kind}, of the plan {wanted.dtype}{list(wanted.shape)}"
                )


def _abstract(kind: Any) -> Abstract | None:
    from jaxlib.mlir import ir

    try:
        tensor = ir.RankedTensorType(kind)
    except ValueError:
        return None
    if not tensor.has_static_shape:
        return None
    dtype = _DTYPES.get(str(tensor.element_type))
    return None if dtype is None else Abstract(tuple(tensor.shape), dtype)
