// A session's random generators. They equal PyTorch's own after the same seed, and never touch the process's.
#pragma once

#include <ATen/core/Generator.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace genie_local {

// A generator that was used; `host`: the one for draws on the host, of a session on another device.
struct GeneratorState {
  int64_t number = 0;
  bool host = false;
  std::string state;
};

class Generators {
 public:
  explicit Generators(c10::Device device) : device_(device) {}

  // The generator with this number on a device; made on first use, seeded as its number was or by default.
  at::Generator& get(int64_t number, c10::Device device);

  void seed(int64_t number, uint64_t seed);
  // The bytes of torch.Generator.get_state().
  std::string state(int64_t number);
  void set_state(int64_t number, const void* data, size_t size);

  // All of them.
  std::vector<GeneratorState> states();
  const std::map<int64_t, uint64_t>& seeds() const {
    return seeds_;
  }
  // Refused when a state is none of this device's generators'; then all are as before.
  void restore(const std::vector<GeneratorState>& states, const std::map<int64_t, uint64_t>& seeds);

 private:
  // Refused (node) for one too many.
  void admit(int64_t number);

  const c10::Device device_;
  std::set<int64_t> numbers_;
  std::map<std::pair<int64_t, c10::DeviceType>, at::Generator> generators_;
  std::map<int64_t, uint64_t> seeds_;
};

// Lends a generator's state to the process's default generator of its device, for an operator that takes no
// generator and draws from the default. Holds a process-wide lock meanwhile.
class AsDefault {
 public:
  explicit AsDefault(at::Generator& generator);
  ~AsDefault();
  AsDefault(const AsDefault&) = delete;
  AsDefault& operator=(const AsDefault&) = delete;

 private:
  std::lock_guard<std::mutex> lock_;
  at::Generator& mine_;
  at::Generator process_;
};

}  // namespace genie_local
