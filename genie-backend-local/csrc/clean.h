// The thread-local state plans run in: PyTorch's defaults, below autograd, on the session's device.
#pragma once

#include <ATen/ThreadLocalState.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <set>
#include <string>

namespace genie_local {

// Keeps the warnings of the steps from the node's standard error.
class WarningCollector final : public c10::WarningHandler {
 public:
  explicit WarningCollector(std::set<std::string>& texts) : texts_(&texts) {}
  void process(const c10::Warning& warning) override;
  void collect_in(std::set<std::string>& texts) {
    texts_ = &texts;
  }

 private:
  std::set<std::string>* texts_;
};

class CleanState {
 public:
  CleanState(c10::Device device, std::set<std::string>& warnings);

  // Where warnings go from now on.
  void collect_in(std::set<std::string>& warnings) {
    collector_.collect_in(warnings);
  }

 private:
  at::ThreadLocalStateGuard state_;
  c10::OptionalDeviceGuard device_;
  WarningCollector collector_;
  c10::WarningUtils::WarningHandlerGuard warnings_;
};

}  // namespace genie_local
