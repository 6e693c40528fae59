#include "names.h"

#include <array>
#include <complex>
#include <cstdlib>
#include <unordered_map>
#include <utility>

namespace genie_local {
namespace {

using c10::ScalarType;

constexpr std::array<std::pair<const char*, ScalarType>, 36> dtypes = {{
    {"bool", ScalarType::Bool},
    {"float16", ScalarType::Half},
    {"bfloat16", ScalarType::BFloat16},
    {"float32", ScalarType::Float},
    {"float64", ScalarType::Double},
    {"complex32", ScalarType::ComplexHalf},
    {"complex64", ScalarType::ComplexFloat},
    {"complex128", ScalarType::ComplexDouble},
    {"float8_e4m3fn", ScalarType::Float8_e4m3fn},
    {"float8_e5m2", ScalarType::Float8_e5m2},
    {"float8_e4m3fnuz", ScalarType::Float8_e4m3fnuz},
    {"float8_e5m2fnuz", ScalarType::Float8_e5m2fnuz},
    {"float8_e8m0fnu", ScalarType::Float8_e8m0fnu},
    {"float4_e2m1fn_x2", ScalarType::Float4_e2m1fn_x2},
    {"int8", ScalarType::Char},
    {"int16", ScalarType::Short},
    {"int32", ScalarType::Int},
    {"int64", ScalarType::Long},
    {"uint8", ScalarType::Byte},
    {"uint16", ScalarType::UInt16},
    {"uint32", ScalarType::UInt32},
    {"uint64", ScalarType::UInt64},
    {"int1", ScalarType::Int1},
    {"int2", ScalarType::Int2},
    {"int3", ScalarType::Int3},
    {"int4", ScalarType::Int4},
    {"int5", ScalarType::Int5},
    {"int6", ScalarType::Int6},
    {"int7", ScalarType::Int7},
    {"uint1", ScalarType::UInt1},
    {"uint2", ScalarType::UInt2},
    {"uint3", ScalarType::UInt3},
    {"uint4", ScalarType::UInt4},
    {"uint5", ScalarType::UInt5},
    {"uint6", ScalarType::UInt6},
    {"uint7", ScalarType::UInt7},
}};

template <class Value>
std::optional<Value> look_up(const std::unordered_map<std::string, Value>& table, const std::string& name) {
  const auto found = table.find(name);
  return found == table.end() ? std::nullopt : std::optional<Value>(found->second);
}

}  // namespace

std::optional<ScalarType> dtype_named(const std::string& name) {
  static const std::unordered_map<std::string, ScalarType> table(dtypes.begin(), dtypes.end());
  return look_up(table, name);
}

const char* name_of(ScalarType dtype) {
  for (const auto& [name, type] : dtypes) {
    if (type == dtype) {
      return name;
    }
  }
  return nullptr;
}

std::optional<c10::Layout> layout_named(const std::string& name) {
  static const std::unordered_map<std::string, c10::Layout> table = {
      {"strided", c10::kStrided},
      {"jagged", c10::kJagged},
      {"sparse_coo", c10::kSparse},
      {"sparse_csr", c10::kSparseCsr},
      {"sparse_csc", c10::kSparseCsc},
      {"sparse_bsr", c10::kSparseBsr},
      {"sparse_bsc", c10::kSparseBsc},
      {"_mkldnn", c10::kMkldnn},
  };
  return look_up(table, name);
}

std::optional<c10::MemoryFormat> memory_format_named(const std::string& name) {
  static const std::unordered_map<std::string, c10::MemoryFormat> table = {
      {"contiguous_format", c10::MemoryFormat::Contiguous},
      {"preserve_format", c10::MemoryFormat::Preserve},
      {"channels_last", c10::MemoryFormat::ChannelsLast},
      {"channels_last_3d", c10::MemoryFormat::ChannelsLast3d},
  };
  return look_up(table, name);
}

// What Python's str(complex) writes: "(1+2j)", "2j", "(-0-nanj)"; or a real number.
std::optional<c10::complex<double>> complex_named(const std::string& text) {
  std::string body = text;
  if (body.size() >= 2 && body.front() == '(' && body.back() == ')') {
    body = body.substr(1, body.size() - 2);
  }
  const char* start = body.c_str();
  char* next = nullptr;
  const double first = std::strtod(start, &next);
  if (next == start) {
    return std::nullopt;
  }
  if (*next == '\0') {
    return c10::complex<double>(first, 0);
  }
  if (*next == 'j') {
    return next[1] == '\0' ? std::optional(c10::complex<double>(0, first)) : std::nullopt;
  }
  const char* imaginary = next;
  const double second = std::strtod(imaginary, &next);
  if (next == imaginary || next[0] != 'j' || next[1] != '\0') {
    return std::nullopt;
  }
  return c10::complex<double>(first, second);
}

}  // namespace genie_local
