#include "loop.h"

#include "clean.h"
#include "run.h"

namespace genie_local {
namespace {

constexpr int64_t most_iterations = int64_t{1} << 31;

[[noreturn]] void refuse(const std::string& what) {
  throw Refused(Refusal::plan, what);
}

std::string number(int64_t value) {
  return std::to_string(value);
}

}  // namespace

Loop::Loop(std::shared_ptr<Plan> plan, std::vector<uint64_t> words, LoopSpec spec, int64_t times)
    : plan_(std::move(plan)), words_(std::move(words)), spec_(std::move(spec)), times_(times) {
  check();
}

void Loop::check() const {
  const auto inputs = static_cast<int64_t>(plan_->inputs.size());
  const auto outputs = static_cast<int64_t>(plan_->outputs.size());
  const auto parameters = static_cast<int64_t>(plan_->patches.size());
  if (times_ <= 0 || times_ >= most_iterations) {
    refuse("a loop of " + number(times_) + " iterations");
  }
  std::vector<int64_t> into(inputs, -1);
  std::vector<int64_t> uses(outputs, 0);
  for (const auto& [input, output] : spec_.carries) {
    if (input < 0 || input >= inputs || output < 0 || output >= outputs) {
      refuse("a loop carries output " + number(output) + " into input " + number(input) + "; the plan has " +
             number(outputs) + " and " + number(inputs));
    }
    if (into[input] >= 0) {
      refuse("a loop carries two outputs into input " + number(input));
    }
    into[input] = output;
    ++uses[output];
  }
  auto looked_at = spec_.emit;
  if (spec_.stop != -1) {
    looked_at.push_back(spec_.stop);
  }
  for (const auto output : looked_at) {
    if (output < 0 || output >= outputs) {
      refuse("a loop looks at output " + number(output) + "; the plan has " + number(outputs));
    }
  }
  std::vector<bool> stepped(parameters, false);
  for (const auto& [parameter, step] : spec_.strides) {
    if (parameter < 0 || parameter >= parameters || plan_->patches[parameter].is_float || stepped[parameter]) {
      refuse("a loop steps parameter " + number(parameter) + ", which is no integer parameter of the plan, or twice");
    }
    stepped[parameter] = true;
  }
  for (int64_t i = 0; i < inputs; ++i) {
    if (plan_->inputs[i].donated && (into[i] < 0 || uses[into[i]] > 1)) {
      refuse("input " + number(i) + " is donated, so it is gone after one iteration, and nothing takes its place");
    }
  }
}

void Loop::advance() {
  for (const auto& [input, output] : spec_.carries) {
    words_[1 + input] = static_cast<uint64_t>(scratch(output));
  }
  const auto first = 1 + plan_->inputs.size();
  for (const auto& [parameter, step] : spec_.strides) {
    words_[first + parameter] += static_cast<uint64_t>(step);
  }
}

Patched::Patched(Plan& plan, const std::vector<uint64_t>& words) : plan_(plan) {
  const auto& received = plan.prediction->words();
  const auto first = 1 + plan.inputs.size();
  try {
    for (size_t i = first; i < words.size(); ++i) {
      if (words[i] != received[i]) {
        changed_.push_back(i - first);
        plan.patch(i - first, words[i]);
      }
    }
  } catch (...) {
    restore();
    throw;
  }
}

Patched::~Patched() {
  restore();
}

void Patched::restore() {
  const auto first = 1 + plan_.inputs.size();
  for (const auto parameter : changed_) {
    plan_.patch(parameter, plan_.prediction->words()[first + parameter]);  // it was received, so it fits
  }
  changed_.clear();
}

std::shared_ptr<Loop> Session::loop(
    int64_t id, const uint8_t* bindings, size_t size, LoopSpec spec, int64_t times) {
  const std::lock_guard<std::mutex> lock(lock_);
  auto& plan = known_plan(id);
  plan->receive(bindings, size);
  return std::make_shared<Loop>(plan, plan->prediction->words(), std::move(spec), times);
}

bool Session::iterate(Loop& loop, std::vector<Bytes>& emitted) {
  const std::lock_guard<std::mutex> lock(lock_);
  check_open();
  if (loop.over()) {
    return false;
  }
  try {
    set_aside(loop);
    {
      const Patched patched(*loop.plan(), loop.words());
      run(*loop.plan(), loop.words());
    }
    drop_aside(loop);
    loop.iterated();
    const auto first = static_cast<int64_t>(loop.words()[0]);
    Spec spec;
    for (const auto output : loop.spec().emit) {
      emitted.push_back(read(first + output, spec));
    }
    if (loop.spec().stop >= 0 && is_set(first + loop.spec().stop)) {
      loop.end();
    }
  } catch (...) {
    drop_aside(loop);
    loop.end();
    throw;
  }
  return true;
}

// The last iteration's outputs make way for the next one's.
void Session::set_aside(Loop& loop) {
  if (!loop.begun()) {
    return;
  }
  const auto first = static_cast<int64_t>(loop.words()[0]);
  const auto outputs = static_cast<int64_t>(loop.plan()->outputs.size());
  for (int64_t k = 0; k < outputs; ++k) {
    const auto found = values_.find(first + k);
    if (found == values_.end()) {
      continue;  // freed; if it is needed, binding says so
    }
    auto holder = std::move(found->second);
    values_.erase(found);
    values_[Loop::scratch(k)] = std::move(holder);
  }
  for (const auto& [input, output] : loop.spec().carries) {
    if (values_.find(Loop::scratch(output)) == values_.end()) {
      throw Refused(
          Refusal::node,
          "handle " + std::to_string(first + output) + ", which a loop goes on with, was freed while it ran");
    }
  }
  loop.advance();
}

void Session::drop_aside(const Loop& loop) {
  const auto outputs = static_cast<int64_t>(loop.plan()->outputs.size());
  for (int64_t k = 0; k < outputs; ++k) {
    if (const auto found = values_.find(Loop::scratch(k)); found != values_.end()) {
      memory_.release(found->second);
      values_.erase(found);
    }
  }
}

bool Session::is_set(int64_t handle) {
  const auto& tensor = look(handle);
  if (!tensor.defined() || tensor.numel() != 1) {
    throw Refused(Refusal::plan, "a loop stops by a value of one element, not by handle " + std::to_string(handle));
  }
  const CleanState clean(device_, warnings_);
  return translated([&] { return tensor.item().toComplexDouble() != 0.0; });
}

}  // namespace genie_local
