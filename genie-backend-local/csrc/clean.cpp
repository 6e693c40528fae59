#include "clean.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
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

// torch.set_num_threads() is for the thread that calls it and for threads to come. A backward pass executes on threads
// that were there before: they do as the main thread does.
void follow_main_thread() {
  static std::atomic<int> wanted{0};
  thread_local const bool main = syscall(SYS_gettid) == getpid();
  if (main) {
    wanted.store(at::get_num_threads(), std::memory_order_relaxed);
    return;
  }
  const int threads = wanted.load(std::memory_order_relaxed);
  if (threads != 0 && threads != at::get_num_threads()) {
    at::set_num_threads(threads);
  }
}

std::optional<c10::Device> accelerator(c10::Device device) {
  return device.is_cpu() ? std::nullopt : std::optional(device);
}

}  // namespace

void WarningCollector::process(const c10::Warning& warning) {
  if (texts_->size() < most_warnings) {
    texts_->insert(warning.msg());
  }
}

CleanState::CleanState(c10::Device device, std::set<std::string>& warnings)
    : state_(new_thread_state()), device_(accelerator(device)), collector_(warnings), warnings_(&collector_) {
  follow_main_thread();
}

}  // namespace genie_local
