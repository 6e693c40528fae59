#include "loader.h"

#include <ATen/core/Generator.h>
#include <ATen/core/jit_type.h>

#include <algorithm>

#include "liveness.h"
#include "names.h"
#include "refused.h"
#include "timing.h"

namespace py = pybind11;

namespace genie_local {
namespace {

using c10::TypeKind;
using Target = Patch::Target;

// The classes of genie.graph, told apart by identity.
struct GraphClasses {
  GraphClasses() {
    const auto module = py::module_::import("genie.graph");
    ref = module.attr("Ref").ptr();
    many = module.attr("Many").ptr();
    constant = module.attr("Const").ptr();
    scalar_tensor = module.attr("ScalarTensor").ptr();
    region = module.attr("Region").ptr();
  }
  // Borrowed: the module keeps them.
  PyObject* ref;
  PyObject* many;
  PyObject* constant;
  PyObject* scalar_tensor;
  PyObject* region;
};

const GraphClasses& classes() {
  static const GraphClasses known;
  return known;
}

bool is_a(const py::handle& object, PyObject* type) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) == type;
}
bool is_int(const py::handle& object) {
  return PyLong_CheckExact(object.ptr());
}
bool is_float(const py::handle& object) {
  return PyFloat_CheckExact(object.ptr());
}

[[noreturn]] void wrong(const std::string& message) {
  throw Refused(Refusal::plan, message);
}

uint64_t word_of(const py::handle& number) {
  if (is_float(number)) {
    const double real = PyFloat_AS_DOUBLE(number.ptr());
    uint64_t word = 0;
    std::memcpy(&word, &real, sizeof(word));
    return word;
  }
  const auto word = PyLong_AsUnsignedLongLongMask(number.ptr());
  if (PyErr_Occurred() != nullptr) {
    throw py::error_already_set();
  }
  return word;
}

c10::IValue number_of(const py::handle& number) {
  if (is_float(number)) {
    return PyFloat_AS_DOUBLE(number.ptr());
  }
  return static_cast<int64_t>(word_of(number));
}

bool is_integral(TypeKind kind) {
  return kind == TypeKind::IntType || kind == TypeKind::SymIntType;
}
bool is_real(TypeKind kind) {
  return kind == TypeKind::FloatType || kind == TypeKind::SymFloatType;
}

class Loader {
 public:
  Loader(const py::handle& graph, c10::Device device, Plan& plan) : Loader(graph, device, plan, plan, -1) {}

  void load() {
    load_graph();
    plan_->prediction = std::make_unique<Prediction>(plan_->inputs.size(), plan_->parameters);
  }

 private:
  // Of a region: `root` is the plan of the graph it belongs to, `region` its number there.
  Loader(const py::handle& graph, c10::Device device, Plan& plan, Plan& root, int32_t region)
      : graph_(graph), device_(device), plan_(&plan), root_(root), region_(region) {}

  void load_graph() {
    plan_->values = py::len(graph_.attr("values"));
    if (plan_->values > static_cast<size_t>(INT32_MAX)) {
      wrong("too many values");
    }
    defined_.resize(plan_->values, false);
    for (const auto& input : graph_.attr("inputs")) {
      const auto value = define(input.attr("value").cast<int64_t>());
      const bool donated = input.attr("donated").cast<bool>();
      plan_->inputs.push_back({value, donated});
      plan_->donates |= donated;
    }
    for (const auto& node : graph_.attr("steps")) {
      load_step(node);
    }
    for (const auto& output : graph_.attr("outputs")) {
      plan_->outputs.push_back(defined(output.cast<int64_t>()));
    }
    for (const auto& source : graph_.attr("sources")) {
      plan_->sources.push_back(source.cast<std::string>());
    }
    check_sources();
    find_releases(*plan_, region_ >= 0);
  }

  int32_t define(int64_t value) {
    if (value < 0 || static_cast<size_t>(value) >= defined_.size() || defined_[value]) {
      wrong("value %" + std::to_string(value) + " is not one of the graph's, or defined twice");
    }
    defined_[value] = true;
    return static_cast<int32_t>(value);
  }

  int32_t defined(int64_t value) const {
    if (value < 0 || static_cast<size_t>(value) >= defined_.size() || !defined_[value]) {
      wrong("value %" + std::to_string(value) + " is used before it is defined");
    }
    return static_cast<int32_t>(value);
  }

  void load_step(const py::handle& node) {
    const auto operation = node.attr("operation").cast<std::string>();
    const auto overload = node.attr("overload").cast<std::string>();
    const auto number = std::to_string(plan_->steps.size());
    try {
      plan_->steps.push_back({find_operator(operation, overload, device_.type()), {}, {}, {}, {}, source(node), device_, phase(node)});
      if (plan_->steps.back().op->way == Operator::Way::regional) {
        load_regions(node);
        load_arguments(without_regions(node.attr("args")));
      } else {
        load_arguments(node.attr("args"));
      }
      load_results(node);
    } catch (const Refused& refused) {
      throw Refused(
          refused.kind,
          "step " + number + " (" + operation +
              (overload.empty() ? "" : "." + overload) + "): " + refused.what());
    }
  }

  static const std::string* phase(const py::handle& node) {
    const py::object semantics = node.attr("semantics");
    const py::object name = semantics.is_none() ? py::object(py::none()) : py::object(semantics.attr("phase"));
    return phase_named(name.is_none() ? std::string() : name.cast<std::string>());
  }

  static int32_t source(const py::handle& node) {
    return node.attr("source").cast<int32_t>();
  }

  void check_sources() const {
    for (const auto& step : plan_->steps) {
      if (step.source < -1 || step.source >= static_cast<int64_t>(plan_->sources.size())) {
        wrong("a step's source is not in the graph's table");
      }
    }
  }

  void load_arguments(const py::tuple& given) {
    auto& step = plan_->steps.back();
    const auto& formal = step.op->handle.schema().arguments();
    if (given.size() > formal.size()) {
      wrong(std::to_string(given.size()) + " arguments, its schema has " + std::to_string(formal.size()));
    }
    step.arguments.resize(formal.size());
    for (index_ = 0; index_ < formal.size(); ++index_) {
      const auto& argument = formal[index_];
      if (index_ >= given.size()) {
        if (!argument.default_value()) {
          wrong("argument '" + argument.name() + "' is missing");
        }
        if (static_cast<int>(index_) == step.op->generator) {
          slot() = {Argument::Kind::generator};
        } else {
          slot().constant = *argument.default_value();
        }
        continue;
      }
      try {
        convert(given[index_], argument);
      } catch (const Refused& refused) {
        throw Refused(refused.kind, "argument '" + argument.name() + "': " + refused.what());
      }
      if (step.op->writes[index_]) {
        const auto& made = slot();
        if (made.kind == Argument::Kind::value) {
          step.written.push_back(static_cast<int32_t>(made.value));
        }
        std::copy_if(made.values.begin(), made.values.end(), std::back_inserter(step.written), [](int32_t value) {
          return value >= 0;
        });
      }
    }
  }

  void load_regions(const py::handle& node) {
    const auto operation = node.attr("operation").cast<std::string>();
    const py::tuple graphs = node.attr("regions");
    auto regional = std::make_unique<Regional>();
    regional->kind = operation == "genie::cond" ? RegionKind::cond
        : operation == "genie::scan"            ? RegionKind::scan
                                                : RegionKind::while_loop;
    const size_t fewest = regional->kind == RegionKind::scan ? 1 : 2;
    if (graphs.size() < fewest || (regional->kind != RegionKind::cond && graphs.size() != fewest)) {
      wrong(std::to_string(graphs.size()) + " regions");
    }
    for (const auto& graph : graphs) {
      const auto number = root_.regions.size();
      root_.regions.push_back(std::make_unique<Plan>());
      auto& plan = *root_.regions.back();
      regional->plans.push_back(&plan);
      try {
        Loader(graph, device_, plan, root_, static_cast<int32_t>(number)).load_graph();
      } catch (const Refused& refused) {
        throw Refused(
            refused.kind, "region " + std::to_string(regional->plans.size() - 1) + ": " + refused.what());
      }
    }
    if (regional->kind == RegionKind::scan) {
      const py::tuple specs = graphs[0].attr("values");
      for (const auto& output : graphs[0].attr("outputs")) {
        const py::object spec = specs[output.cast<size_t>()];
        const auto dtype = dtype_named(spec.attr("dtype").cast<std::string>());
        if (!dtype) {
          wrong("a region gives a value of an unknown dtype");
        }
        regional->given.push_back({spec.attr("shape").cast<std::vector<int64_t>>(), *dtype});
      }
    }
    plan_->steps.back().regional = std::move(regional);
  }

  static py::tuple without_regions(const py::tuple& given) {
    py::list kept;
    for (const auto& argument : given) {
      const bool branches = is_a(argument, classes().many) && py::len(argument.attr("items")) > 0 &&
          is_a(py::object(argument.attr("items")[py::int_(0)]), classes().region);
      if (!branches && !is_a(argument, classes().region)) {
        kept.append(argument);
      }
    }
    return py::tuple(kept);
  }

  Argument& slot() {
    return plan_->steps.back().arguments[index_];
  }

  // A parameter, in the order of genie.bindings.parameters.
  void parameter(const py::handle& number, Target target, uint32_t item = 0, uint32_t repeat = 1) {
    Patch patch;
    patch.step = static_cast<uint32_t>(plan_->steps.size() - 1);
    patch.argument = static_cast<uint32_t>(index_);
    patch.item = item;
    patch.repeat = repeat;
    patch.region = region_;
    patch.target = target;
    patch.is_float = is_float(number);
    root_.patches.push_back(patch);
    root_.parameters.push_back(word_of(number));
  }

  void convert(const py::handle& given, const c10::Argument& formal) {
    auto type = formal.real_type();
    if (type->kind() == TypeKind::OptionalType) {
      type = type->containedType(0);
      if (given.is_none()) {
        slot() = type->kind() == TypeKind::GeneratorType ? Argument{Argument::Kind::generator} : Argument{};
        return;
      }
    }
    if (type->kind() == TypeKind::ListType) {
      convert_list(given, type->containedType(0), formal.N());
    } else {
      convert_single(given, type);
    }
  }

  void convert_single(const py::handle& given, const c10::TypePtr& type) {
    const auto kind = type->kind();
    if (kind == TypeKind::TensorType) {
      tensor(given);
    } else if (kind == TypeKind::NumberType && (is_int(given) || is_float(given))) {
      slot().constant = number_of(given);
      parameter(given, Target::number);
    } else if (is_integral(kind) && is_int(given)) {
      slot().constant = number_of(given);
      parameter(given, Target::number);
    } else if (is_real(kind) && (is_int(given) || is_float(given))) {
      slot().constant = number_of(given).toScalar().toDouble();
      parameter(given, Target::real);
    } else if (PyBool_Check(given.ptr())) {
      boolean(given.ptr() == Py_True, kind);
    } else if (kind == TypeKind::StringType && PyUnicode_Check(given.ptr())) {
      slot().constant = given.cast<std::string>();
    } else if (is_a(given, classes().constant)) {
      constant(given, kind);
    } else {
      mismatch(given, type);
    }
  }

  void boolean(bool given, TypeKind kind) {
    if (kind == TypeKind::BoolType || kind == TypeKind::SymBoolType || kind == TypeKind::NumberType) {
      slot().constant = given;
    } else if (is_integral(kind)) {
      slot().constant = static_cast<int64_t>(given);
    } else if (is_real(kind)) {
      slot().constant = static_cast<double>(given);
    } else {
      wrong("a bool is not wanted here");
    }
  }

  void tensor(const py::handle& given) {
    auto& made = slot();
    if (is_a(given, classes().ref)) {
      made.kind = Argument::Kind::value;
      made.value = defined(given.attr("value").cast<int64_t>());
    } else if (is_a(given, classes().scalar_tensor)) {
      made.kind = plan_->steps.back().op->aliased[index_] ? Argument::Kind::fresh : Argument::Kind::constant;
      made.constant = host_scalar(given, Target::tensor);
    } else {
      wrong(std::string("a tensor is required, not ") + Py_TYPE(given.ptr())->tp_name);
    }
  }

  at::Tensor host_scalar(const py::handle& given, Target target, uint32_t item = 0) {
    const auto name = given.attr("dtype").cast<std::string>();
    const auto dtype = dtype_named(name);
    if (!dtype) {
      wrong("no dtype is called '" + name + "'");
    }
    const bool wrapped = given.attr("wrapped").cast<bool>();
    const py::object number = given.attr("number");
    const bool is_bool = PyBool_Check(number.ptr());
    if (!is_bool && !is_int(number) && !is_float(number)) {
      wrong(std::string("a number is required, not ") + Py_TYPE(number.ptr())->tp_name);
    }
    if (!is_bool) {
      parameter(number, target, item);
      root_.patches.back().dtype = *dtype;
      root_.patches.back().wrapped = wrapped;
    }
    try {
      const auto scalar = is_bool ? c10::Scalar(number.ptr() == Py_True) : number_of(number).toScalar();
      return scalar_tensor(scalar, *dtype, wrapped);
    } catch (const std::exception& error) {
      wrong(first_line(error.what()));
    }
  }

  void constant(const py::handle& given, TypeKind kind) {
    const auto what = given.attr("kind").cast<std::string>();
    const auto text = given.attr("text").cast<std::string>();
    auto& made = slot();
    std::optional<c10::IValue> found;
    if (what == "dtype" && kind == TypeKind::ScalarTypeType) {
      if (const auto dtype = dtype_named(text)) {
        found = *dtype;
      }
    } else if (what == "layout" && kind == TypeKind::LayoutType) {
      if (const auto layout = layout_named(text)) {
        found = *layout;
      }
    } else if (what == "memory_format" && kind == TypeKind::MemoryFormatType) {
      if (const auto format = memory_format_named(text)) {
        found = *format;
      }
    } else if (what == "device" && kind == TypeKind::DeviceObjType) {
      found = device(text);
    } else if (what == "complex" && kind == TypeKind::NumberType) {
      if (const auto number = complex_named(text)) {
        found = *number;
      }
    } else if (what == "generator" && kind == TypeKind::GeneratorType) {
      made.kind = Argument::Kind::generator;
      made.value = number(text);
      return;
    }
    if (!found) {
      wrong("the " + what + " '" + text + "' is not known or not wanted here");
    }
    made.constant = std::move(*found);
  }

  c10::Device device(const std::string& text) {
    if (text == "self") {
      return device_;
    }
    if (text == "cpu" || text == "meta") {
      plan_->steps.back().device = c10::Device(text);
      return c10::Device(text);
    }
    if (text == device_.str()) {
      return device_;
    }
    wrong("device '" + text + "' is not this session's; say 'self', 'cpu' or 'meta'");
  }

  static int64_t number(const std::string& text) {
    try {
      size_t used = 0;
      const auto number = std::stoll(text, &used);
      if (used == text.size() && number >= 0) {
        return number;
      }
    } catch (const std::exception&) {
      // said below
    }
    wrong("'" + text + "' is no number of a generator");
  }

  void convert_list(const py::handle& given, const c10::TypePtr& element, std::optional<int32_t> length) {
    const auto kind = element->kind();
    if (!is_a(given, classes().many)) {
      // One number may stand for a list of known length, as in PyTorch.
      if (length && is_integral(kind) && is_int(given)) {
        slot().constant = c10::List<int64_t>(std::vector<int64_t>(*length, number_of(given).toInt()));
        parameter(given, Target::list_int, 0, *length);
      } else if (length && is_real(kind) && (is_float(given) || is_int(given))) {
        const auto real = number_of(given).toScalar().toDouble();
        slot().constant = c10::List<double>(std::vector<double>(*length, real));
        parameter(given, Target::list_real, 0, *length);
      } else {
        wrong(std::string("a list is required, not ") + Py_TYPE(given.ptr())->tp_name);
      }
      return;
    }
    const py::tuple items = given.attr("items");
    if (kind == TypeKind::TensorType) {
      tensors(items, false);
    } else if (kind == TypeKind::OptionalType && element->containedType(0)->kind() == TypeKind::TensorType) {
      tensors(items, true);
    } else if (is_integral(kind)) {
      list<int64_t>(items, element, Target::list_int, [](const py::handle& item) { return is_int(item); });
    } else if (is_real(kind)) {
      list<double>(items, element, Target::list_real, [](const py::handle& item) {
        return is_int(item) || is_float(item);
      });
    } else if (kind == TypeKind::BoolType) {
      list<bool>(items, element, Target::nothing, [](const py::handle&) { return false; });
    } else if (kind == TypeKind::NumberType) {
      numbers(items, element);
    } else {
      wrong("lists of " + element->str() + " are not supported");
    }
  }

  template <class Element, class IsNumber>
  void list(const py::tuple& items, const c10::TypePtr& element, Target target, IsNumber&& is_number) {
    c10::List<Element> made;
    made.reserve(items.size());
    uint32_t position = 0;
    for (const auto& item : items) {
      if (is_number(item)) {
        const auto number = number_of(item).toScalar();
        made.push_back(number.to<Element>());
        parameter(item, target, position);
      } else if (PyBool_Check(item.ptr())) {
        made.push_back(static_cast<Element>(item.ptr() == Py_True));
      } else {
        mismatch(item, element);
      }
      ++position;
    }
    slot().constant = std::move(made);
  }

  void numbers(const py::tuple& items, const c10::TypePtr& element) {
    c10::impl::GenericList made(c10::NumberType::get());
    uint32_t position = 0;
    for (const auto& item : items) {
      if (is_int(item) || is_float(item)) {
        made.push_back(number_of(item));
        parameter(item, Target::list_number, position);
      } else if (PyBool_Check(item.ptr())) {
        made.push_back(item.ptr() == Py_True);
      } else if (is_a(item, classes().constant) && item.attr("kind").cast<std::string>() == "complex") {
        const auto number = complex_named(item.attr("text").cast<std::string>());
        if (!number) {
          mismatch(item, element);
        }
        made.push_back(*number);
      } else {
        mismatch(item, element);
      }
      ++position;
    }
    slot().constant = std::move(made);
  }

  void tensors(const py::tuple& items, bool optional) {
    auto& made = slot();
    made.kind = optional ? Argument::Kind::optional_tensors : Argument::Kind::tensors;
    for (const auto& item : items) {
      if (is_a(item, classes().ref)) {
        made.values.push_back(defined(item.attr("value").cast<int64_t>()));
      } else if (optional && item.is_none()) {
        made.values.push_back(-1);
      } else if (is_a(item, classes().scalar_tensor) && !plan_->steps.back().op->writes[index_]) {
        const auto position = static_cast<uint32_t>(made.scalars.size());
        made.scalars.push_back(host_scalar(item, Target::list_tensor, position));
        made.fresh_scalars = plan_->steps.back().op->aliased[index_];
        made.values.push_back(-2 - static_cast<int32_t>(position));
      } else {
        wrong(std::string("a list of values is required, with no ") + Py_TYPE(item.ptr())->tp_name);
      }
    }
  }

  [[noreturn]] static void mismatch(const py::handle& given, const c10::TypePtr& type) {
    std::string text = Py_TYPE(given.ptr())->tp_name;
    if (is_a(given, classes().constant)) {
      text += " " + given.attr("kind").cast<std::string>();
    }
    wrong(type->str() + " is required, not " + (given.is_none() ? "None" : text));
  }

  void load_results(const py::handle& node) {
    auto& step = plan_->steps.back();
    for (const auto& output : node.attr("outputs")) {
      const auto value = output.cast<int64_t>();
      step.outputs.push_back(value == -1 ? -1 : define(value));
    }
    for (const auto& written : node.attr("mutates")) {
      step.written.push_back(defined(written.cast<int64_t>()));
    }
    std::sort(step.written.begin(), step.written.end());
    step.written.erase(std::unique(step.written.begin(), step.written.end()), step.written.end());
    const auto& results = step.op->handle.schema().returns();
    const bool lists = std::any_of(results.begin(), results.end(), [](const c10::Argument& result) {
      return result.type()->kind() == TypeKind::ListType;
    });
    if (!lists && step.outputs.size() != results.size()) {
      wrong(
          std::to_string(step.outputs.size()) + " outputs, its schema has " + std::to_string(results.size()) +
          " results");
    }
  }

  const py::handle& graph_;
  const c10::Device device_;
  Plan* const plan_;
  Plan& root_;
  const int32_t region_;  // -1: it is no region
  std::vector<bool> defined_;
  size_t index_ = 0;  // of the argument being converted
};

}  // namespace

std::shared_ptr<Plan> load_plan(const py::handle& graph, c10::Device device) {
  auto plan = std::make_shared<Plan>();
  Loader(graph, device, *plan).load();
  return plan;
}

}  // namespace genie_local
