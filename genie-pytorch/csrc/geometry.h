// Geometry that rules and unboxed kernels share.
#pragma once

#include "value.h"

#include <algorithm>

namespace genie {

// On the device, strided as C has it, nothing lazy about its elements.
inline bool is_plain(const at::Tensor& tensor) {
  return tensor.defined() && on_device(tensor) && tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg();
}

// Strides as C has them, for the sizes there are.
inline void set_contiguous(Spec& spec) {
  spec.strides.resize(spec.sizes.size());
  int64_t step = 1;
  for (size_t i = spec.sizes.size(); i-- > 0;) {
    spec.strides[i] = step;
    step *= std::max<int64_t>(spec.sizes[i], 1);
  }
  spec.offset = 0;
  spec.conj = spec.neg = false;
  spec.defined = true;
}

// Broadcasts one more operand into the sizes of a result. False for what does not fit.
inline bool broadcast_into(Spec& spec, at::IntArrayRef sizes) {
  if (sizes.size() > spec.sizes.size()) {
    spec.sizes.insert(spec.sizes.begin(), sizes.size() - spec.sizes.size(), 1);
  }
  const size_t shift = spec.sizes.size() - sizes.size();
  for (size_t i = 0; i < sizes.size(); ++i) {
    auto& size = spec.sizes[shift + i];
    if (size == 1) {
      size = sizes[i];
    } else if (sizes[i] != 1 && sizes[i] != size) {
      return false;
    }
  }
  return true;
}

} // namespace genie
