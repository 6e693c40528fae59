#include "run.h"

#include <optional>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace genie_local {
namespace {

constexpr int64_t largest_handle = INT64_MAX;

std::string value_text(int64_t handle) {
  return "handle " + std::to_string(handle);
}

at::Tensor copy_of_scalar(const at::Tensor& tensor) {
  return scalar_tensor(tensor.item(), tensor.scalar_type(), tensor.unsafeGetTensorImpl()->is_wrapped_number());
}

at::Tensor tensor_of(const c10::IValue& result) {
  if (result.isTensor()) {
    return result.toTensor();
  }
  if (result.isNone()) {
    return {};
  }
  const auto number = result.toScalar();
  return at::scalar_tensor(number, at::TensorOptions().dtype(number.type()));
}

}  // namespace

void Session::Run::bind(const std::vector<uint64_t>& words) {
  auto& slots = session_.slots_;
  slots.assign(plan_.values, nullptr);
  session_.own_.resize(std::max(session_.own_.size(), plan_.values));

  first_output_ = static_cast<int64_t>(words[0]);
  const auto outputs = static_cast<int64_t>(plan_.outputs.size());
  if (outputs > 0 && (first_output_ <= 0 || first_output_ > largest_handle - outputs)) {
    throw Refused(Refusal::node, value_text(first_output_) + " is no positive 63-bit number");
  }
  for (size_t i = 0; i < plan_.inputs.size(); ++i) {
    const auto handle = static_cast<int64_t>(words[1 + i]);
    const auto found = session_.values_.find(handle);
    if (found == session_.values_.end()) {
      throw Refused(
          Refusal::node,
          value_text(handle) + ", input " + std::to_string(i) + " of plan " + std::to_string(plan_.id) + ", is unknown");
    }
    slots[plan_.inputs[i].value] = &found->second;
    found->second.use = session_.use_;
    poisoned_ |= found->second.failure != nullptr;
  }
  for (int64_t k = 0; k < outputs; ++k) {
    session_.check_new(first_output_ + k);
  }
  if (session_.memory_.away() > 0) {
    for (const auto& input : plan_.inputs) {
      session_.bring_back(*slots[input.value]);
    }
  }
  if (!plan_.donates) {
    return;
  }
  std::vector<Holder*> bound(slots);
  std::sort(bound.begin(), bound.end());
  for (size_t i = 0; i < plan_.inputs.size(); ++i) {
    const auto& input = plan_.inputs[i];
    const auto range = std::equal_range(bound.begin(), bound.end(), slots[input.value]);
    if (input.donated && range.second - range.first > 1) {
      throw Refused(Refusal::node, value_text(static_cast<int64_t>(words[1 + i])) + " is donated and bound twice");
    }
  }
  for (size_t i = 0; i < plan_.inputs.size(); ++i) {
    const auto& input = plan_.inputs[i];
    if (input.donated) {
      // The table's entry stays until the end: erasing would move the other inputs' entries.
      auto& own = session_.own_[input.value];
      own = std::move(*slots[input.value]);
      *slots[input.value] = Holder{};
      slots[input.value] = &own;
      donated_.push_back(static_cast<int64_t>(words[1 + i]));
    }
  }
}

void Session::Run::alone() {
  const CleanState clean(session_.device_, session_.warnings_);
  const AllocationLimit limit(session_.memory_);
  if (session_.timer_.due(plan_)) {
    timed();
  } else {
    steps(plan_.steps.size());
  }
}

void Session::Run::steps(size_t end) {
  for (; next_ < end; ++next_) {
    step(plan_.steps[next_], next_);
  }
}

void Session::Run::step(Step& step, size_t index) {
  perform(step, index);
  release(step);
}

void Session::Run::perform(Step& step, size_t index) {
  auto failure = stopped_ || session_.stop_.due(until_) ? stopped(index) : nullptr;
  if (!failure && poisoned_) {
    failure = failed_operand(step);
  }
  if (failure) {
    ++session_.counters_.skipped_steps;
  } else {
    failure = attempt(step, index, [&] {
      auto& stack = session_.stack_;
      stack.clear();
      for (auto& argument : step.arguments) {
        push(argument, step);
      }
      for (const auto value : step.written) {
        auto* storage = session_.slots_[value]->storage;
        if (storage != nullptr) {
          session_.memory_.own(*storage);
        }
      }
      call(step);
    });
  }
  if (failure) {
    poison(step, failure);
  }
}

// `work` leaves the step's results on the stack.
template <class Work>
FailurePtr Session::Run::attempt(const Step& step, size_t index, Work&& work) {
  try {
    const auto before = session_.memory_.live();
    work();
    keep_results(step);
    for (const auto value : step.written) {
      session_.memory_.refresh(*session_.slots_[value]);
    }
    if (auto& memory = session_.memory_; memory.lacks(0) && memory.lacks_after_all(0)) {
      const auto made = memory.live() - before;
      C10_THROW_ERROR(OutOfMemoryError, memory.shortage(made, made));
    }
    return nullptr;
  } catch (const RegionFailed& inner) {
    return failed_within(inner, step, index);
  } catch (...) {
    return describe(current_failure(), step, index);
  }
}

FailurePtr Session::Run::describe(Failure failure, const Step& step, size_t index) {
  ++session_.counters_.failed_steps;
  return named(std::move(failure), step, index);
}

FailurePtr Session::Run::named(Failure failure, const Step& step, size_t index) const {
  failure.op = step.op->name;
  if (failure.source.empty() && step.source >= 0) {
    failure.source = plan_.sources[step.source];
  }
  failure.device = session_.name_;
  failure.plan = plan_.id;
  failure.step = static_cast<int64_t>(index);
  return std::make_shared<const Failure>(std::move(failure));
}

// Why this step, and all after it, are not done.
FailurePtr Session::Run::stopped(size_t index) {
  if (stopped_) {
    return stopped_;
  }
  auto failure = why_stopped();
  if (!session_.stop_.asked()) {
    // The time was up while the step before ran.
    index = index > 0 ? index - 1 : 0;
  }
  return stopped_ = named(std::move(failure), plan_.steps[index], index);
}

Failure Session::Run::why_stopped() {
  ++session_.counters_.stopped_executions;
  if (session_.stop_.asked()) {
    return {"Cancelled", "the work was cancelled: " + session_.stop_.reason()};
  }
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%g", session_.stop_.limit());
  return {"ExecutionTimedOut", std::string("an execution took longer than the ") + seconds + " s this node allows"};
}

void Session::Run::advance(size_t end, CleanState& clean) {
  clean.collect_in(session_.warnings_);
  const AllocationLimit limit(session_.memory_);
  steps(end);
}

std::vector<const void*> Session::Run::weights() const {
  std::vector<const void*> found;
  found.reserve(plan_.weights.size());
  for (const auto value : plan_.weights) {
    const auto& tensor = session_.slots_[value]->tensor;
    found.push_back(tensor.defined() && tensor.has_storage() ? tensor.const_data_ptr() : nullptr);
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<c10::IValue> Session::Run::operands(const Product& product) {
  auto& step = plan_.steps[product.step];
  if (next_ != product.step || stopped_ || session_.stop_.due(until_) || (poisoned_ && failed_operand(step))) {
    return {};
  }
  session_.stack_.clear();
  for (auto& argument : step.arguments) {
    push(argument, step);
  }
  return std::exchange(session_.stack_, {});
}

at::Tensor Session::Run::make(const Product& product, const std::vector<c10::IValue>& operands) {
  const auto& step = plan_.steps[product.step];
  const AllocationLimit limit(session_.memory_);
  ++session_.counters_.steps;
  at::Tensor result;
  const auto failure = attempt(step, product.step, [&] {
    const auto& rows = operands[product.rows].toTensor();
    auto sizes = rows.sizes().vec();
    sizes.back() = operands[product.weight].toTensor().size(product.made);
    result = at::empty(sizes, rows.options());
    session_.stack_.clear();
    session_.stack_.emplace_back(result);
  });
  if (failure) {
    poison(step, failure);
    made(product);
    return {};
  }
  return result;
}

void Session::Run::made(const Product& product) {
  release(plan_.steps[product.step]);
  ++next_;
}

void Session::Run::failed(const Product& product, Failure failure) {
  const auto& step = plan_.steps[product.step];
  poison(step, describe(std::move(failure), step, product.step));
  made(product);
}

void Session::Run::batched(size_t members, size_t products) {
  auto& counters = session_.counters_;
  ++counters.batched_executions;
  counters.batched_members += static_cast<int64_t>(members);
  counters.batched_steps += static_cast<int64_t>(products);
  counters.largest_batch = std::max(counters.largest_batch, static_cast<int64_t>(members));
}

void Session::Run::release(const Step& step) {
  for (const auto value : step.released) {
    session_.memory_.release(*session_.slots_[value]);
  }
}

void Session::Run::push(Argument& argument, const Step& step) {
  auto& stack = session_.stack_;
  switch (argument.kind) {
    case Argument::Kind::constant:
      stack.push_back(argument.constant);
      break;
    case Argument::Kind::value:
      stack.emplace_back(session_.slots_[argument.value]->tensor);
      break;
    case Argument::Kind::tensors:
    case Argument::Kind::optional_tensors:
      push_list(argument);
      break;
    case Argument::Kind::fresh:
      stack.emplace_back(copy_of_scalar(argument.constant.toTensor()));
      break;
    case Argument::Kind::generator:
      stack.emplace_back(generator(argument.value, step));
      break;
  }
}

void Session::Run::push_list(const Argument& argument) {
  const auto tensor = [&](int32_t value) {
    if (value >= 0) {
      return session_.slots_[value]->tensor;
    }
    const auto& scalar = argument.scalars[-2 - value];
    return argument.fresh_scalars ? copy_of_scalar(scalar) : scalar;
  };
  if (argument.kind == Argument::Kind::tensors) {
    c10::List<at::Tensor> list;
    list.reserve(argument.values.size());
    for (const auto value : argument.values) {
      list.push_back(tensor(value));
    }
    session_.stack_.emplace_back(std::move(list));
  } else {
    c10::List<std::optional<at::Tensor>> list;
    list.reserve(argument.values.size());
    for (const auto value : argument.values) {
      list.push_back(value == -1 ? std::nullopt : std::optional(tensor(value)));
    }
    session_.stack_.emplace_back(std::move(list));
  }
}

at::Generator& Session::Run::generator(int64_t number, const Step& step) {
  auto device = step.device;
  if (!session_.device_.is_cpu()) {
    // A draw happens where its operand is, be that the host.
    for (const auto& value : session_.stack_) {
      if (value.isTensor() && value.toTensor().defined()) {
        device = value.toTensor().device();
        break;
      }
    }
  }
  if (device.is_meta()) {
    device = c10::Device(c10::kCPU);
  }
  return session_.generators_.get(number, device);
}

void Session::Run::call(const Step& step) {
  ++session_.counters_.steps;
  auto& stack = session_.stack_;
  std::optional<AsDefault> drawing;
  if (step.op->draws_default) {
    drawing.emplace(generator(0, step));
  }
  if (step.op->shim != nullptr) {
    step.op->shim(stack);
  } else if (step.op->way == Operator::Way::plain) {
    step.op->handle.callBoxed(stack);
  } else if (step.op->way == Operator::Way::uncleared) {
    call_cleared(step);
  } else if (step.op->way == Operator::Way::regional) {
    call_regions(step);
  } else {
    call_compiled(step);
  }
}

void Session::Run::call_cleared(const Step& step) {
  const ClearedMemory cleared;
  auto& stack = session_.stack_;
  step.op->handle.callBoxed(stack);
  // Other devices' allocators are not ours: what is new there, and not written by any operand, is zeroed after.
  const bool writes = std::find(step.op->writes.begin(), step.op->writes.end(), true) != step.op->writes.end();
  for (const auto& result : stack) {
    if (!writes && result.isTensor() && result.toTensor().defined() && !result.toTensor().is_cpu() &&
        !result.toTensor().is_meta()) {
      result.toTensor().zero_();
    }
  }
}

void Session::Run::keep_results(const Step& step) {
  size_t next = 0;
  const auto take = [&](at::Tensor tensor) {
    if (next < step.outputs.size()) {
      keep(step.outputs[next], std::move(tensor));
    }
    ++next;
  };
  for (auto& result : session_.stack_) {
    if (result.isTensor()) {
      take(std::move(result).toTensor());
    } else if (result.isTensorList()) {
      for (const at::Tensor& tensor : result.toTensorVector()) {
        take(tensor);
      }
    } else {
      take(tensor_of(result));
    }
  }
  TORCH_CHECK(
      next == step.outputs.size(), "the operator made ", next, " values, the plan numbers ", step.outputs.size());
  session_.stack_.clear();
}

void Session::Run::keep(int32_t value, at::Tensor tensor) {
  if (value < 0) {
    return;
  }
  auto& own = session_.own_[value];
  own.tensor = std::move(tensor);
  session_.memory_.hold(own, Kind::intermediate);
  session_.slots_[value] = &own;
}

FailurePtr Session::Run::failed_operand(const Step& step) const {
  for (const auto& argument : step.arguments) {
    if (argument.kind == Argument::Kind::value) {
      if (const auto& failure = session_.slots_[argument.value]->failure) {
        return failure;
      }
    }
    for (const auto value : argument.values) {
      if (value >= 0 && session_.slots_[value]->failure) {
        return session_.slots_[value]->failure;
      }
    }
  }
  return nullptr;
}

void Session::Run::poison(const Step& step, const FailurePtr& failure) {
  poisoned_ = true;
  if (!first_failure_) {
    first_failure_ = failure;
  }
  session_.stack_.clear();
  for (const auto value : step.outputs) {
    if (value >= 0) {
      auto& own = session_.own_[value];
      session_.memory_.release(own);
      own.failure = failure;
      session_.slots_[value] = &own;
    }
  }
  for (const auto value : step.written) {
    poison_storage(*session_.slots_[value], failure);
  }
}

// What a step should have written is stale for everyone who shares the memory.
void Session::Run::poison_storage(Holder& holder, const FailurePtr& failure) {
  if (holder.failure) {
    return;
  }
  const auto* storage = holder.storage;
  const auto hit = [&](Holder& other) {
    if (&other == &holder || (storage != nullptr && other.storage == storage)) {
      session_.memory_.release(other);
      other.failure = failure;
    }
  };
  for (auto& own : session_.own_) {
    hit(own);
  }
  for (auto& [handle, value] : session_.values_) {
    hit(value);
  }
}

void Session::Run::finish() {
  std::vector<Holder> outputs;
  outputs.reserve(plan_.outputs.size());
  for (const auto value : plan_.outputs) {
    Holder holder;
    holder.tensor = session_.slots_[value]->tensor;
    holder.failure = session_.slots_[value]->failure;
    holder.use = session_.use_;
    session_.memory_.hold(holder, Kind::state);
    outputs.push_back(std::move(holder));
  }
  abandon();
  for (size_t k = 0; k < outputs.size(); ++k) {
    session_.values_[first_output_ + static_cast<int64_t>(k)] = std::move(outputs[k]);
  }
}

void Session::Run::abandon() {
  session_.stack_.clear();
  for (size_t value = 0; value < plan_.values; ++value) {
    session_.memory_.release(session_.own_[value]);
  }
  for (const auto handle : donated_) {
    session_.values_.erase(handle);
  }
}

}  // namespace genie_local
