// Steps that run graphs of their own: branches and loops, as genie.graph.regions says.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace genie_local {

struct Plan;

enum class RegionKind : uint8_t { cond, while_loop, scan };

// Whether an operator runs regions.
bool is_regional(const std::string& operation);

// What a region step runs. The plans are their graph's plan's.
struct Regional {
  struct Empty {
    std::vector<int64_t> shape;
    c10::ScalarType dtype;
  };
  RegionKind kind = RegionKind::cond;
  std::vector<Plan*> plans;  // the branches; condition and body; the body
  std::vector<Empty> given;  // what a scan's body gives, for one of no iterations
};

}  // namespace genie_local
