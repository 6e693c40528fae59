#include "liveness.h"

#include <algorithm>

namespace genie_local {

void find_releases(Plan& plan, bool is_region) {
  constexpr int64_t kept = -2;
  std::vector<int64_t> last(plan.values, kept);
  for (const auto& input : plan.inputs) {
    if (input.donated || is_region) {
      last[input.value] = -1;
    }
  }
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const auto use = [&](int32_t value) {
      if (value >= 0 && last[value] != kept) {
        last[value] = static_cast<int64_t>(i);
      }
    };
    for (const auto& argument : plan.steps[i].arguments) {
      if (argument.kind == Argument::Kind::value) {
        use(static_cast<int32_t>(argument.value));
      }
      std::for_each(argument.values.begin(), argument.values.end(), use);
    }
    for (const auto output : plan.steps[i].outputs) {
      if (output >= 0) {
        last[output] = static_cast<int64_t>(i);
      }
    }
  }
  for (const auto output : plan.outputs) {
    last[output] = kept;
  }
  for (size_t value = 0; value < last.size(); ++value) {
    if (last[value] >= 0) {
      plan.steps[last[value]].released.push_back(static_cast<int32_t>(value));
    }
  }
}

}  // namespace genie_local
