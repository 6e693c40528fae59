#include "compiled.h"

#include <ATen/DLConvertor.h>
#include <torch/library.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>

#include "liveness.h"
#include "refused.h"
#include "run.h"
#include "timing.h"

// A schema alone, which no plan that is sent may name.
TORCH_LIBRARY_FRAGMENT(genie, library) {
  library.def("compiled(Tensor[] operands) -> Tensor[]");
}

namespace genie_local {
namespace {

constexpr uintptr_t alignment = 64;  // genie.compilers.ALIGNMENT
constexpr const char* fresh_name = "dltensor";
constexpr const char* used_name = "used_dltensor";

void drop_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, fresh_name) != 0) {
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, fresh_name));
    managed->deleter(managed);
  }
}

// The memory of a tensor without the tensor, which is free to leave its device, or to end, as long as nobody looks.
struct Lent {
  DLManagedTensor managed;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
};

pybind11::object capsule_of(const at::Tensor& tensor) {
  auto lent = std::make_unique<Lent>(Lent{{}, tensor.sizes().vec(), tensor.strides().vec()});
  auto& its = lent->managed.dl_tensor;
  its.data = const_cast<void*>(tensor.const_data_ptr());  // which a program does not write to
  its.device = at::torchDeviceToDLDevice(tensor.device());
  its.ndim = static_cast<int32_t>(lent->shape.size());
  its.dtype = at::getDLDataType(tensor);
  its.shape = lent->shape.data();
  its.strides = lent->strides.data();
  lent->managed.manager_ctx = lent.get();
  lent->managed.deleter = [](DLManagedTensor* self) { delete static_cast<Lent*>(self->manager_ctx); };
  auto capsule =
      pybind11::reinterpret_steal<pybind11::object>(PyCapsule_New(&lent->managed, fresh_name, &drop_capsule));
  if (!capsule) {
    throw pybind11::error_already_set();
  }
  lent.release();  // NOLINT(bugprone-unused-return-value): the capsule's now
  return capsule;
}

// The same memory as elements of another type. Most values have the type that carries them: no operator for those.
at::Tensor as_type(const at::Tensor& tensor, c10::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.view(dtype);
}

at::Tensor tensor_in(const pybind11::handle& capsule) {
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), fresh_name));
  if (managed == nullptr) {
    throw pybind11::error_already_set();
  }
  auto tensor = at::fromDLPack(managed);
  PyCapsule_SetName(capsule.ptr(), used_name);
  return tensor;
}

}  // namespace

Compiled::Compiled(pybind11::object program, int64_t bytes, std::vector<Face> operands, std::vector<Face> results)
    : bytes(bytes),
      program_(std::move(program)),
      view_(program_.attr("view")),
      views_(operands.size()),
      operands_(std::move(operands)),
      results_(std::move(results)) {}

Compiled::~Compiled() {
  const pybind11::gil_scoped_acquire gil;
  views_.clear();
  view_ = pybind11::object();
  program_ = pybind11::object();
}

at::Tensor Compiled::as_taken(const at::Tensor& operand, size_t place) const {
  const auto& face = operands_[place];
  TORCH_CHECK(
      operand.defined() && operand.sizes() == at::IntArrayRef(face.shape) && operand.scalar_type() == face.carried,
      "operand ", place, " of a compiled program is to be ", toString(face.carried), at::IntArrayRef(face.shape));
  auto taken = as_type(operand.resolve_conj().resolve_neg().contiguous(), face.dtype);
  const auto at = reinterpret_cast<uintptr_t>(taken.const_data_ptr());
  return at % alignment == 0 ? taken : taken.clone();
}

std::vector<at::Tensor> Compiled::run(const std::vector<at::Tensor>& operands) {
  std::vector<at::Tensor> given;
  given.reserve(operands.size());
  for (size_t i = 0; i < operands.size(); ++i) {
    given.push_back(as_taken(operands[i], i));
  }
  std::vector<at::Tensor> made;
  {
    const pybind11::gil_scoped_acquire gil;
    pybind11::list seen(given.size());
    for (size_t i = 0; i < given.size(); ++i) {
      auto& its = views_[i];
      const auto* data = given[i].const_data_ptr();
      if (!its.made || its.data != data) {
        its = {data, view_(capsule_of(given[i]))};
      }
      seen[i] = its.made;
    }
    const pybind11::list results = program_(seen);
    made.reserve(results.size());
    for (const auto& result : results) {
      made.push_back(tensor_in(result));
    }
  }
  TORCH_CHECK(made.size() == results_.size(), "a compiled program made ", made.size(), " values");
  for (size_t i = 0; i < made.size(); ++i) {
    const auto& face = results_[i];
    TORCH_CHECK(
        made[i].sizes() == at::IntArrayRef(face.shape) && made[i].scalar_type() == face.dtype,
        "result ", i, " of a compiled program is ", toString(made[i].scalar_type()), made[i].sizes());
    made[i] = as_type(made[i].contiguous(), face.carried);
  }
  return made;
}

std::shared_ptr<Plan> compiled_plan(
    const std::string& name,
    const std::vector<bool>& donated,
    const std::vector<int32_t>& takes,
    std::vector<uint64_t> parameters,
    size_t results,
    std::shared_ptr<Compiled> compiled) {
  auto plan = std::make_shared<Plan>();
  const auto inputs = static_cast<int32_t>(donated.size());
  plan->values = donated.size() + results;
  for (int32_t i = 0; i < inputs; ++i) {
    plan->inputs.push_back({i, donated[i]});
    plan->donates |= donated[i];
  }
  for (const auto taken : takes) {
    if (taken < 0 || taken >= inputs) {
      throw Refused(Refusal::plan, "a compiled program takes an input that its plan does not have");
    }
  }
  const auto handle = c10::Dispatcher::singleton().findSchema({"genie::compiled", ""});
  auto op = std::make_shared<Operator>(Operator{*handle, name, {false}, {false}});
  op->way = Operator::Way::compiled;
  Step step{std::move(op), {}, {}, {}, {}, -1, c10::Device(c10::kCPU), phase_named("")};
  Argument operands;
  operands.kind = Argument::Kind::tensors;
  operands.values = takes;
  step.arguments.push_back(std::move(operands));
  step.outputs.resize(results);
  std::iota(step.outputs.begin(), step.outputs.end(), inputs);
  plan->outputs = step.outputs;
  step.compiled = std::move(compiled);
  plan->steps.push_back(std::move(step));
  plan->patches.resize(parameters.size());  // nothing to be done
  plan->parameters = std::move(parameters);
  plan->fixed = true;
  plan->prediction = std::make_unique<Prediction>(plan->inputs.size(), plan->parameters);
  find_releases(*plan, false);
  return plan;
}

void Session::Run::call_compiled(const Step& step) {
  auto& stack = session_.stack_;
  auto& memory = session_.memory_;
  auto& compiled = *step.compiled;
  if (memory.lacks(compiled.bytes) && memory.lacks_after_all(compiled.bytes)) {
    C10_THROW_ERROR(OutOfMemoryError, memory.shortage(compiled.bytes));
  }
  const auto operands = stack.back().toTensorVector();
  stack.clear();
  stack.emplace_back(c10::List<at::Tensor>(compiled.run(operands)));
}

}  // namespace genie_local
