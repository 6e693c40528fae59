// What a session holds, without the bytes: genie.snapshots for the Python side.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "random.h"
#include "refused.h"
#include "spec.h"

namespace genie_local {

// A storage. Equal id and version mean equal bytes, in whatever session.
struct MemoryState {
  int64_t id = 0;
  int64_t bytes = 0;
  int64_t version = 0;
  bool host = false;  // in the host's memory, of a session on another device
};

// A value; an undefined tensor if `memory` is 0.
struct ValueState {
  int64_t handle = 0;
  int64_t memory = 0;
  Spec spec;
  int64_t offset = 0;  // elements
  bool conjugate = false;
  bool negative = false;
  bool wrapped = false;  // a number that yields in dtype promotion
};

struct Snapshot {
  std::vector<MemoryState> memories;
  std::vector<ValueState> values;  // by handle
  std::vector<GeneratorState> generators;
  std::map<int64_t, uint64_t> seeds;
  std::vector<std::pair<int64_t, FailurePtr>> failures;
};

}  // namespace genie_local
