// Shape, dtype and strides of a value.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace genie_local {

struct Spec {
  std::vector<int64_t> shape;
  c10::ScalarType dtype = c10::ScalarType::Float;
  std::vector<int64_t> stride;
};

}  // namespace genie_local
