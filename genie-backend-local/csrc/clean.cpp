#include "clean.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>

#include <thread>

namespace genie_local {
namespace {

constexpr size_t most_warnings = 64;

// What a new thread has: no modes, no autocast, no transforms, no profiler of the caller's.
const at::ThreadLocalState& new_thread_state() {
  static const at::ThreadLocalState state = [] {
    std::optional<at::ThreadLocalState> made;
    std::thread([&made] {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      const c10::NoGradGuard no_grad;
      made.emplace();
    }).join();
    return *made;
  }();
  return state;
}

std::optional<c10::Device> accelerator(c10::Device device) {
  return device.is_cpu() ? std::nullopt : std::optional(device);
}

}  // namespace

void WarningCollector::process(const c10::Warning& warning) {
  if (texts_.size() < most_warnings) {
    texts_.insert(warning.msg());
  }
}

CleanState::CleanState(c10::Device device, std::set<std::string>& warnings)
    : state_(new_thread_state()), device_(accelerator(device)), collector_(warnings), warnings_(&collector_) {}

}  // namespace genie_local
