#include "random.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include <cstring>

#include "refused.h"

namespace genie_local {
namespace {

constexpr size_t most_generators = 1 << 16;  // of some kilobytes each

std::mutex& default_lock() {
  static std::mutex lock;
  return lock;
}

void swap(at::Generator& left, at::Generator& right) {
  const std::scoped_lock locks(left.mutex(), right.mutex());
  if (left.device().is_cpu()) {
    // Through tensors of state this would cost microseconds.
    auto& a = *left.get<at::CPUGeneratorImpl>();
    auto& b = *right.get<at::CPUGeneratorImpl>();
    const auto engine = a.engine();
    const auto as_float = a.next_float_normal_sample();
    const auto as_double = a.next_double_normal_sample();
    a.set_engine(b.engine());
    a.set_next_float_normal_sample(b.next_float_normal_sample());
    a.set_next_double_normal_sample(b.next_double_normal_sample());
    b.set_engine(engine);
    b.set_next_float_normal_sample(as_float);
    b.set_next_double_normal_sample(as_double);
  } else {
    const auto state = left.get_state();
    left.set_state(right.get_state());
    right.set_state(state);
  }
}

std::string state_of(at::Generator& generator) {
  const std::lock_guard<std::mutex> lock(generator.mutex());
  const auto state = generator.get_state();
  return {static_cast<const char*>(state.const_data_ptr()), state.nbytes()};
}

void give_state(at::Generator& generator, const void* data, size_t size) {
  const auto state = at::empty({static_cast<int64_t>(size)}, at::TensorOptions().dtype(at::kByte));
  std::memcpy(state.mutable_data_ptr(), data, size);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  try {
    generator.set_state(state);
  } catch (const c10::Error& error) {
    throw Refused(Refusal::node, error.what_without_backtrace());
  }
}

}  // namespace

void Generators::admit(int64_t number) {
  if (numbers_.size() >= most_generators && numbers_.find(number) == numbers_.end()) {
    throw Refused(
        Refusal::node,
        "a session has at most " + std::to_string(most_generators) +
            " generators: use one again, with another seed");
  }
  numbers_.insert(number);
}

at::Generator& Generators::get(int64_t number, c10::Device device) {
  admit(number);
  auto& generator = generators_[{number, device.type()}];
  if (!generator.defined()) {
    if (device.is_cpu()) {
      generator = at::detail::createCPUGenerator();
    } else {
      generator = at::globalContext().defaultGenerator(device).clone();
      generator.set_current_seed(c10::default_rng_seed_val);
    }
    const auto seed = seeds_.find(number);
    if (seed != seeds_.end()) {
      generator.set_current_seed(seed->second);
    }
  }
  return generator;
}

void Generators::seed(int64_t number, uint64_t seed) {
  admit(number);
  seeds_[number] = seed;
  for (auto& [key, generator] : generators_) {
    if (key.first == number) {
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_current_seed(seed);
    }
  }
}

std::string Generators::state(int64_t number) {
  return state_of(get(number, device_));
}

void Generators::set_state(int64_t number, const void* data, size_t size) {
  give_state(get(number, device_), data, size);
}

std::vector<GeneratorState> Generators::states() {
  std::vector<GeneratorState> states;
  for (auto& [key, generator] : generators_) {
    states.push_back({key.first, key.second != device_.type(), state_of(generator)});
  }
  return states;
}

void Generators::restore(const std::vector<GeneratorState>& states, const std::map<int64_t, uint64_t>& seeds) {
  Generators restored(device_);
  restored.seeds_ = seeds;
  for (const auto& [number, host, state] : states) {
    const auto device = host ? c10::Device(c10::kCPU) : device_;
    give_state(restored.get(number, device), state.data(), state.size());
  }
  generators_.swap(restored.generators_);
  seeds_.swap(restored.seeds_);
}

AsDefault::AsDefault(at::Generator& generator)
    : lock_(default_lock()), mine_(generator), process_(at::globalContext().defaultGenerator(generator.device())) {
  swap(mine_, process_);
}

AsDefault::~AsDefault() {
  swap(mine_, process_);
}

}  // namespace genie_local
