// Writes commands into a stream's segment.
#pragma once

#include "stream.h"

#include <string>
#include <vector>

namespace genie {

// Structure of a segment, as 32-bit tokens. Two segments with equal tokens are the same plan with other parameters.
enum Token : uint32_t {
  kOp = 1,      // operator, module, source, scope, number of arguments
  kNone,
  kValue,       // value index
  kInt,         // parameter
  kFloat,       // parameter
  kTrue,
  kFalse,
  kComplex,     // four words of bits
  kString,      // interned
  kDtype,       // ScalarType
  kLayout,
  kMemoryFormat,
  kDevice,      // 1: the plan's own device, 0: the node's host
  kGenerator,   // number
  kList,        // length, then the items
  kHostScalar,  // dtype, wrapped, then kInt / kFloat / kTrue / kFalse
  kReturns,     // number of fresh values, then for each: 1 if defined
  kEnd,         // outputs, donated inputs and marked values follow
};

// Writes one command whose operands were touched. The caller holds the lock.
class Writer {
 public:
  Writer(Stream& stream, uint32_t op, uint32_t arguments);
  void none() { put(kNone); }
  void value(const at::Tensor& tensor);
  void value(const ValuePtr& value, const Spec& spec);
  void integer(int64_t number);
  void real(double number);
  void boolean(bool flag) { put(flag ? kTrue : kFalse); }
  void complex(c10::complex<double> number);
  void string(const std::string& text);
  void dtype(at::ScalarType type) { put(kDtype, static_cast<uint32_t>(type)); }
  void layout(int64_t layout) { put(kLayout, static_cast<uint32_t>(layout)); }
  void memory_format(int64_t format) { put(kMemoryFormat, static_cast<uint32_t>(format)); }
  void device(bool own) { put(kDevice, own ? 1u : 0u); }
  void generator(uint32_t number) { put(kGenerator, number); }
  void list(size_t length) { put(kList, static_cast<uint32_t>(length)); }
  void host_scalar(const at::Tensor& tensor);
  // Declares the one fresh value.
  ValuePtr fresh(const Spec& spec);
  // Declares the fresh values; returns the tensors' values in order (null where undefined).
  void returns(const std::vector<Spec>& specs, std::vector<ValuePtr>& values);

 private:
  ValuePtr make(const Spec& spec);
  void put(uint32_t token) { segment_.tokens.push_back(token); }
  void put(uint32_t token, uint32_t operand) {
    segment_.tokens.push_back(token);
    segment_.tokens.push_back(operand);
  }
  Stream& stream_;
  Segment& segment_;
};

const std::string& interned(uint32_t id);
uint32_t intern(const std::string& text);

} // namespace genie
