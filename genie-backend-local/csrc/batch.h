// Where executions of several sessions meet, to be run in lockstep: decoding is bound by reading weights, and read once
// they serve all.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "lockstep.h"
#include "products.h"
#include "run.h"

namespace genie_local {

struct BatchOptions {
  bool exact = true;  // results are to the last bit those of running alone
  int64_t lanes = 0;  // batches of one model that run at the same time; 0: as many as there are cores for
  int64_t fewest = 1;  // an execution waits for so many …
  double patience = 1e-2;  // … or for those that were just here, but never longer than this (s)
};

// Shared by the sessions of a process. An execution joins those that multiply by the same memory, be the steps in
// between what they may. Thread-safe.
class Batcher {
 public:
  explicit Batcher(const BatchOptions& options);
  ~Batcher();
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Does the run's steps: on this thread, with those of others that are there; or another thread does, meanwhile.
  void run(Session::Run& run);

 private:
  class Group;

  std::shared_ptr<Group> group_of(const Session::Run& run);

  const BatchOptions options_;
  Products products_;
  std::mutex lock_;
  std::unordered_map<uint64_t, std::shared_ptr<Group>> groups_;
};

}  // namespace genie_local
