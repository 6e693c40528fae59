#include "adopt.h"

#include "operator.h"
#include "writer.h"

namespace genie {

void touch(Stream& stream, const at::Tensor& tensor) {
  if (value_of(tensor) == nullptr) {
    adopt(stream, tensor);
  }
  order(stream, tensor);
}

namespace {

const Operator& find_operator(const char* name, const char* overload) {
  return operator_for(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

ValuePtr write_empty(Stream& stream, int64_t length, at::ScalarType dtype) {
  static const Operator& empty = find_operator("aten::empty", "memory_format");
  Writer writer(stream, empty.id, 6);
  writer.list(1);
  writer.integer(length);
  writer.dtype(dtype);
  writer.none();
  writer.device(true);
  writer.none();
  writer.none();
  Spec spec;
  spec.sizes = {length};
  spec.strides = {1};
  spec.dtype = dtype;
  std::vector<ValuePtr> values;
  writer.returns({spec}, values);
  return values[0];
}

} // namespace

void adopt(Stream& stream, const at::Tensor& tensor) {
  static const Operator& set = find_operator("aten::set_", "source_Tensor_storage_offset");
  const auto dtype = tensor.scalar_type();
  ValuePtr value = write_empty(stream, 0, dtype);
  auto* context = context_of(tensor.storage());
  ValuePtr base = context == nullptr ? ValuePtr() : context->latest.lock();
  if (!base && context != nullptr) {
    base = context->first.lock();
  }
  TORCH_CHECK(
      base || tensor.storage().nbytes() == 0,
      "genie: no tensor is left that names this storage on remote_accelerator; keep the tensor it came from alive");
  if (base) {
    check_made(*base);
    if (base->pending && base->maker != &stream) {
      flush(*base->maker);
    }
    // set_ takes the memory of a contiguous tensor from its first element on: an empty one at the very start.
    static const Operator& as_strided = find_operator("aten::as_strided", "");
    Spec nothing;
    nothing.sizes = {0};
    nothing.strides = {1};
    nothing.dtype = dtype;
    ValuePtr start;
    {
      Spec memory; // all that is known of the base here
      memory.sizes = {static_cast<int64_t>(tensor.storage().nbytes())};
      memory.strides = {1};
      memory.dtype = at::kByte;
      Writer writer(stream, as_strided.id, 4);
      writer.value(base, memory);
      writer.list(1);
      writer.integer(0);
      writer.list(1);
      writer.integer(1);
      writer.integer(0);
      std::vector<ValuePtr> values;
      writer.returns({nothing}, values);
      start = std::move(values[0]);
    }
    Writer writer(stream, set.id, 5);
    writer.value(value, nothing);
    writer.value(start, nothing);
    writer.integer(tensor.storage_offset());
    writer.list(tensor.dim());
    for (const auto size : tensor.sizes()) {
      writer.integer(size);
    }
    writer.list(tensor.dim());
    for (const auto stride : tensor.strides()) {
      writer.integer(stride);
    }
    std::vector<ValuePtr> none;
    writer.returns({}, none);
  }
  set_value(tensor, std::move(value));
}

ValuePtr make_root(int64_t nbytes, int16_t device) {
  Lock lock;
  return write_empty(stream_for(device, nullptr), nbytes, at::kByte);
}

} // namespace genie
