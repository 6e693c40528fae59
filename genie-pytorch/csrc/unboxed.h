// Kernels of the operators programs issue most. Boxing takes references to the operands, which for a tensor that only
// Python holds means taking the GIL, and memory for the stack. Each leaves what is unusual, errors included, to the
// boxed kernel.
#pragma once

#include "adopt.h"
#include "record.h"
#include "timer.h"
#include "writer.h"

#include <initializer_list>

namespace genie {

inline const Operator& named(const char* name, const char* overload) {
  return operator_for(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

template <typename... Args>
at::Tensor boxed(const Operator& op, const Args&... args) {
  torch::jit::Stack stack;
  torch::jit::push(stack, args...);
  record(op, &stack);
  return stack[0].toTensor();
}

inline bool usual(const at::Tensor& tensor) {
  return !is_fake(tensor) && !check_geometry;
}

// Writes an operator of these operands, all on one device, and of what `rest` writes. Its result is a view of `base`
// if that is given.
template <typename F>
at::Tensor write_one(
    const Operator& op,
    std::initializer_list<const at::Tensor*> operands,
    uint32_t others,
    const Spec& spec,
    const at::Tensor* base,
    F&& rest) {
  const at::Tensor& first = **operands.begin();
  Timer timer;
  Lock lock;
  auto& stream = stream_for(static_cast<int16_t>(first.device().index()), value_of(first));
  for (const auto* operand : operands) {
    touch(stream, *operand);
  }
  Writer writer(stream, op.id, static_cast<uint32_t>(operands.size()) + others);
  for (const auto* operand : operands) {
    writer.value(*operand);
  }
  rest(writer);
  auto result = make_tensor(spec, writer.fresh(spec), base);
  timer.stop();
  maybe_cut(stream);
  return result;
}

} // namespace genie
