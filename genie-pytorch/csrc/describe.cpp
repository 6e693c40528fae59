#include "describe.h"

#include "operator.h"
#include "writer.h"

namespace py = pybind11;

namespace genie {

namespace {

struct Reader {
  const Segment& segment;
  size_t at = 0;
  size_t parameter = 0;

  uint32_t next() {
    return segment.tokens.at(at++);
  }

  static void collect(const py::object& argument, std::vector<uint32_t>& values) {
    if (!py::isinstance<py::tuple>(argument)) {
      return;
    }
    const auto parts = argument.cast<py::tuple>();
    const auto tag = parts[0].cast<std::string>();
    if (tag == "value") {
      values.push_back(parts[1].cast<uint32_t>());
    } else if (tag == "list") {
      for (const auto& item : parts[1].cast<py::tuple>()) {
        collect(py::reinterpret_borrow<py::object>(item), values);
      }
    }
  }

  py::object argument() {
    switch (next()) {
      case kNone:
        return py::none();
      case kValue:
        return py::make_tuple("value", next());
      case kInt:
        return py::int_(static_cast<int64_t>(segment.parameters.at(parameter++)));
      case kFloat: {
        double number;
        std::memcpy(&number, &segment.parameters.at(parameter++), sizeof number);
        return py::float_(number);
      }
      case kTrue:
        return py::bool_(true);
      case kFalse:
        return py::bool_(false);
      case kComplex: {
        uint32_t words[4];
        for (auto& word : words) {
          word = next();
        }
        double parts[2];
        std::memcpy(parts, words, sizeof parts);
        return py::make_tuple("const", "complex", py::make_tuple(parts[0], parts[1]));
      }
      case kString:
        return py::str(interned(next()));
      case kDtype:
        return py::make_tuple("const", "dtype", next());
      case kLayout:
        return py::make_tuple("const", "layout", next());
      case kMemoryFormat:
        return py::make_tuple("const", "memory_format", next());
      case kDevice:
        return py::make_tuple("const", "device", next());
      case kGenerator:
        return py::make_tuple("const", "generator", next());
      case kList: {
        const auto length = next();
        py::tuple items(length);
        for (uint32_t i = 0; i < length; ++i) {
          items[i] = argument();
        }
        return py::make_tuple("list", items);
      }
      case kHostScalar: {
        const auto dtype = next();
        const auto wrapped = next();
        return py::make_tuple("scalar", dtype, argument(), py::bool_(wrapped != 0));
      }
      default:
        TORCH_INTERNAL_ASSERT(false, "genie: a segment's tokens are out of step");
    }
  }
};

} // namespace

py::dict describe_segment(const Segment& segment, const std::vector<uint32_t>& outputs) {
  py::list values;
  for (const auto& note : segment.values) {
    const auto* geometry = segment.geometry.data() + note.geometry;
    const auto rank = static_cast<size_t>(geometry[0]);
    py::tuple shape(rank);
    py::tuple stride(rank);
    for (size_t i = 0; i < rank; ++i) {
      shape[i] = py::int_(geometry[1 + i]);
      stride[i] = py::int_(geometry[1 + rank + i]);
    }
    values.append(py::make_tuple(static_cast<int>(note.dtype), shape, stride));
  }

  py::list nodes;
  std::vector<uint32_t> made_order;
  for (const auto& [index, value] : segment.made) {
    made_order.push_back(index);
  }
  size_t made = 0;
  Reader reader{segment};
  for (uint32_t command = 0; command < segment.commands; ++command) {
    TORCH_INTERNAL_ASSERT(reader.next() == kOp);
    const Operator& op = operator_at(reader.next());
    const uint32_t module = reader.next();
    const uint32_t source = reader.next();
    const uint32_t scope = reader.next();
    const uint32_t count = reader.next();
    py::tuple args(count);
    std::vector<std::vector<uint32_t>> operands(count);
    py::list mutates;
    for (uint32_t i = 0; i < count; ++i) {
      args[i] = reader.argument();
      Reader::collect(args[i], operands[i]);
      if (op.written[i]) {
        for (const auto value : operands[i]) {
          mutates.append(value);
        }
      }
    }
    if (!op.writes_unsaid.empty() && args[op.writes_unsaid_if].cast<bool>()) {
      for (const auto argument : op.writes_unsaid) {
        for (const auto value : operands[argument]) {
          mutates.append(value);
        }
      }
    }
    TORCH_INTERNAL_ASSERT(reader.next() == kReturns);
    const uint32_t fresh = reader.next();
    std::vector<int64_t> fresh_values;
    for (uint32_t i = 0; i < fresh; ++i) {
      fresh_values.push_back(reader.next() != 0 ? static_cast<int64_t>(made_order.at(made++)) : -1);
    }
    py::list outs;
    py::list aliases;
    size_t taken = 0;
    for (size_t i = 0; i < op.returns.size(); ++i) {
      const auto& info = op.returns[i];
      if (info.kind == ReturnKind::kSame) {
        outs.append(-1);
        continue;
      }
      if (info.kind == ReturnKind::kSameList) {
        continue;
      }
      // Only a trailing or lone list may take more than one: what no schema in ATen breaks.
      const size_t rest = op.returns.size() - i - 1;
      const bool list = info.kind == ReturnKind::kList || info.kind == ReturnKind::kViewList;
      const size_t take = list ? fresh_values.size() - taken - rest : 1;
      for (size_t k = 0; k < take && taken < fresh_values.size(); ++k) {
        const int64_t value = fresh_values[taken++];
        outs.append(value);
        if (value >= 0 && (info.kind == ReturnKind::kView || info.kind == ReturnKind::kViewList)) {
          for (const auto operand : operands[static_cast<size_t>(info.argument)]) {
            aliases.append(py::make_tuple(value, operand));
          }
        }
      }
    }
    nodes.append(
        py::make_tuple(op.name, op.overload, args, outs, mutates, aliases, module, source, scope));
  }

  py::list inputs;
  py::list marks;
  for (const auto& leaf : segment.leaves) {
    const auto handle = leaf.value->handle;
    auto from = whence(leaf.value->device, handle);
    if ((from == From::kMade) == (handle > segment.looked_at)) {
      from = From::kUnknown; // on its way from one segment to the next, or given for an earlier call
    }
    inputs.append(py::make_tuple(leaf.index, py::bool_(leaf.donated), handle, static_cast<int>(from)));
    if (leaf.value->mark != 0) {
      marks.append(py::make_tuple(leaf.index, leaf.value->mark));
    }
  }
  for (const auto& [index, value] : segment.made) {
    if (value->mark != 0) {
      marks.append(py::make_tuple(index, value->mark));
    }
  }
  py::dict result;
  result["values"] = values;
  result["nodes"] = nodes;
  result["inputs"] = inputs;
  result["outputs"] = py::cast(outputs);
  result["marks"] = marks;
  return result;
}

} // namespace genie
