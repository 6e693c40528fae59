// PyTorch's things by the names graphs use.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Layout.h>
#include <c10/core/MemoryFormat.h>
#include <c10/core/ScalarType.h>

#include <optional>
#include <string>

namespace genie_local {

std::optional<c10::ScalarType> dtype_named(const std::string& name);
// nullptr for a dtype graphs have no name for.
const char* name_of(c10::ScalarType dtype);
std::optional<c10::Layout> layout_named(const std::string& name);
std::optional<c10::MemoryFormat> memory_format_named(const std::string& name);
std::optional<c10::complex<double>> complex_named(const std::string& text);

}  // namespace genie_local
