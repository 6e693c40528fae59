#include "writer.h"

#include "scope.h"

#include <algorithm>
#include <cstring>
#include <deque>

namespace genie {

namespace {

std::deque<std::string> strings;
std::unordered_map<std::string, uint32_t> string_ids;

uint32_t note_value(Segment& segment, const Spec& spec) {
  auto& geometry = segment.geometry;
  const auto rank = spec.sizes.size();
  // Values in a row are often alike.
  const bool again = !segment.values.empty() && [&] {
    const auto* last = geometry.data() + segment.values.back().geometry;
    return last[0] == static_cast<int64_t>(rank) && std::equal(spec.sizes.begin(), spec.sizes.end(), last + 1) &&
        std::equal(spec.strides.begin(), spec.strides.end(), last + 1 + rank);
  }();
  const auto position = again ? segment.values.back().geometry : static_cast<uint32_t>(geometry.size());
  if (!again) {
    geometry.push_back(static_cast<int64_t>(rank));
    geometry.insert(geometry.end(), spec.sizes.begin(), spec.sizes.end());
    geometry.insert(geometry.end(), spec.strides.begin(), spec.strides.end());
  }
  segment.values.push_back({spec.dtype, position});
  return static_cast<uint32_t>(segment.values.size() - 1);
}

} // namespace

uint32_t intern(const std::string& text) {
  const auto [found, fresh] = string_ids.emplace(text, static_cast<uint32_t>(strings.size()));
  if (fresh) {
    strings.push_back(text);
  }
  return found->second;
}

const std::string& interned(uint32_t id) {
  return strings.at(id);
}

Writer::Writer(Stream& stream, uint32_t op, uint32_t arguments) : stream_(stream), segment_(stream.segment) {
  begin_history(stream);
  const Origin origin = current_origin(stream.backward);
  auto& tokens = segment_.tokens;
  tokens.push_back(kOp);
  tokens.push_back(op);
  tokens.push_back(origin.module);
  tokens.push_back(origin.source);
  tokens.push_back(origin.scope);
  tokens.push_back(arguments);
  segment_.imprint =
      (op * 2654435761u) ^ (origin.source * 40503u) ^ (origin.module * 69069u) ^ (origin.scope * 1664525u);
  ++segment_.commands;
  ++counters.operators;
}

void Writer::value(const at::Tensor& tensor) {
  Value* value = value_of(tensor);
  if (value->segment != segment_.serial) {
    value->segment = segment_.serial;
    value->index = note_value(segment_, spec_of(tensor));
    segment_.leaves.push_back({ValuePtr::reclaim_copy(value), value->index});
  }
  if (auto* context = context_of(tensor.storage())) {
    context->stream = &stream_;
    context->segment = segment_.serial;
  }
  put(kValue, value->index);
}

void Writer::value(const ValuePtr& value, const Spec& spec) {
  if (value->segment != segment_.serial) {
    value->segment = segment_.serial;
    value->index = note_value(segment_, spec);
    segment_.leaves.push_back({value, value->index});
  }
  put(kValue, value->index);
}

void Writer::integer(int64_t number) {
  put(kInt);
  segment_.parameters.push_back(static_cast<uint64_t>(number));
}

void Writer::real(double number) {
  put(kFloat);
  uint64_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  segment_.parameters.push_back(bits);
}

void Writer::complex(c10::complex<double> number) {
  uint32_t words[4];
  const double parts[2] = {number.real(), number.imag()};
  std::memcpy(words, parts, sizeof words);
  put(kComplex);
  segment_.tokens.insert(segment_.tokens.end(), words, words + 4);
}

void Writer::string(const std::string& text) {
  put(kString, intern(text));
}

void Writer::host_scalar(const at::Tensor& tensor) {
  put(kHostScalar, static_cast<uint32_t>(tensor.scalar_type()));
  segment_.tokens.push_back(tensor.unsafeGetTensorImpl()->is_wrapped_number() ? 1u : 0u);
  const auto scalar = tensor.item();
  if (scalar.isBoolean()) {
    boolean(scalar.toBool());
  } else if (scalar.isFloatingPoint()) {
    real(scalar.toDouble());
  } else {
    integer(scalar.toLong());
  }
}

ValuePtr Writer::make(const Spec& spec) {
  auto value = c10::make_intrusive<Value>(stream_.device);
  value->segment = segment_.serial;
  value->index = note_value(segment_, spec);
  value->maker = &stream_;
  value->pending = true;
  segment_.made.emplace_back(value->index, value);
  return value;
}

ValuePtr Writer::fresh(const Spec& spec) {
  put(kReturns, 1);
  put(1u);
  return make(spec);
}

void Writer::returns(const std::vector<Spec>& specs, std::vector<ValuePtr>& values) {
  put(kReturns, static_cast<uint32_t>(specs.size()));
  for (const auto& spec : specs) {
    put(spec.defined ? 1u : 0u);
    values.push_back(spec.defined ? make(spec) : ValuePtr());
  }
}

} // namespace genie
