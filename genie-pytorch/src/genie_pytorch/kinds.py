"""What a function of PyTorch does with its operands, as far as capturing it is concerned."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._device import _device_constructors


class Kind(enum.Enum):
    NATIVE = enum.auto()  # acts on the tensor as it is: getters, views, conversions, looks
    FACTORY = enum.auto()  # makes a tensor from no tensor
    LIKE = enum.auto()  # makes a tensor from another one's geometry
    WRITE = enum.auto()  # writes to its first operand
    BACKWARD = enum.auto()  # runs code of the program's, such as hooks and what was not kept for the backward pass
    ESCAPE = enum.auto()  # gives away the address of its first operand
    COMPUTE = enum.auto()


_WRITING_DUNDERS = frozenset(
    f"__{name}__"
    for name in "iadd isub imul imatmul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift setitem".split()
)

_ESCAPES = frozenset(
    "numpy __array__ data_ptr const_data_ptr untyped_storage _typed_storage storage __dlpack__ share_memory_"
    " __cuda_array_interface__ _storage".split()
)

# Looks, conversions and questions; what returns its operand, a view of it or a tensor beside it.
_NATIVE = frozenset(
    "item tolist to cpu cuda remote_accelerator type type_as float double half bfloat16 int long short char byte"
    " bool cfloat cdouble chalf contiguous clone detach requires_grad_ retain_grad retains_grad register_hook"
    " register_post_accumulate_grad_hook backward grad size stride dim ndimension numel nelement"
    " storage_offset element_size get_device has_names refine_names rename rename_"
    " align_to align_as unflatten split chunk unbind"
    " is_tensor is_storage is_same_size is_set_to is_pinned is_shared is_contiguous is_coalesced is_complex"
    " is_floating_point is_signed is_conj is_neg is_inference is_nonzero is_distributed _is_view _is_zerotensor"
    " equal allclose result_type can_cast promote_types _has_compatible_shallow_copy_type"
    " atleast_1d atleast_2d atleast_3d broadcast_tensors meshgrid pin_memory"
    " to_sparse to_sparse_csr to_sparse_csc to_sparse_bsr to_sparse_bsc to_dense to_mkldnn coalesce sparse_mask"
    " values indices crow_indices col_indices ccol_indices row_indices _values _indices _nnz dense_dim sparse_dim"
    " q_scale q_zero_point qscheme dequantize int_repr q_per_channel_scales q_per_channel_zero_points"
    " q_per_channel_axis module_load as_subclass _make_subclass _make_wrapper_subclass _update_names dim_order"
    " from_numpy frombuffer from_dlpack from_file _sync _is_functional_tensor"
    " __repr__ __str__ __format__ __bool__ __int__ __float__ __index__ __complex__ __len__ __iter__ __hash__"
    " __reduce__ __reduce_ex__ __setstate__ __getstate__ __deepcopy__ __copy__ __dir__ __dlpack_device__"
    " _reduce_ex_internal".split()
)

_LIKES = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_empty new_zeros new_ones"
    " new_full new_empty_strided".split()
)

# Operators that write to running statistics without saying so in their schema; their sixth argument turns it on.
_KEEPS_STATISTICS = frozenset("batch_norm instance_norm native_batch_norm _batch_norm_impl_index".split())
STATISTICS_FLAG = 5

_HOST_ONLY_FACTORIES = frozenset(
    "nested_tensor empty_quantized sparse_coo_tensor sparse_csr_tensor sparse_csc_tensor sparse_bsr_tensor"
    " sparse_bsc_tensor sparse_compressed_tensor".split()
)


def _view_names() -> frozenset[str]:
    """Names of the operators that return their operand's memory, by their schemas."""
    names = set()
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::"):
            for each in schema.returns:
                if each.alias_info is not None and not each.alias_info.is_write:
                    names.add(schema.name.removeprefix("aten::"))
    return frozenset(names)


_VIEWS = _view_names()
_known: dict[Any, Kind] = {}


def kind_of(function: Callable[..., Any]) -> Kind:
    kind = _known.get(function)
    if kind is None:
        kind = _known[function] = _classify(function)
    return kind


def _classify(function: Callable[..., Any]) -> Kind:
    name = getattr(function, "__name__", "")
    if name == "__set__":
        return Kind.WRITE
    if name in ("__get__", "__delete__"):
        return Kind.NATIVE
    if name in _HOST_ONLY_FACTORIES:
        return Kind.NATIVE
    if function in (torch.Tensor.backward, torch.autograd.backward):
        return Kind.BACKWARD
    if function in _device_constructors():
        return Kind.FACTORY
    if name in _ESCAPES:
        return Kind.ESCAPE
    if name in _NATIVE:
        return Kind.NATIVE
    if name in _LIKES:
        return Kind.LIKE
    if name in _WRITING_DUNDERS or (name.endswith("_") and not name.endswith("__")):
        return Kind.WRITE
    # An index may select by a tensor, which is no view; and a view by name may be a function of F (F.fold).
    if name in _VIEWS and name != "__getitem__":
        return Kind.NATIVE
    return Kind.COMPUTE


_inplace_positions: dict[Any, int] = {}


def writes_by_flag(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of ``function`` writes to its first operand because ``inplace`` is set."""
    if "inplace" in kwargs:
        return bool(kwargs["inplace"])
    position = _inplace_positions.get(function)
    if position is None:
        position = -1
        if inspect.isfunction(function) and not hasattr(function, "__wrapped__"):
            names = list(inspect.signature(function).parameters)
            position = names.index("inplace") if "inplace" in names else -1
        _inplace_positions[function] = position
    return 0 <= position < len(args) and bool(args[position])


def keeps_statistics(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call writes to running statistics among its operands."""
    if getattr(function, "__name__", "") not in _KEEPS_STATISTICS:
        return False
    if len(args) > STATISTICS_FLAG:
        return bool(args[STATISTICS_FLAG])
    return bool(kwargs.get("training", kwargs.get("use_input_stats", True)))
