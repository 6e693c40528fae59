// Runs plans, holds values. One session is one ordered stream of work on one device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "blocks.h"
#include "loop.h"
#include "memory.h"
#include "plan.h"
#include "random.h"
#include "refused.h"
#include "shared.h"
#include "snapshot.h"
#include "spec.h"
#include "stop.h"
#include "timing.h"
#include "turnstile.h"

namespace genie_local {

class Batcher;  // batch.h
class Session;
using BatcherPtr = std::shared_ptr<Batcher>;

// Bytes for Python, kept alive and unchanged while somebody looks at them.
struct Bytes {
  void* data = nullptr;
  size_t size = 0;
  std::string copied;  // all of them, when they are few
  std::shared_ptr<void> pinned;  // what keeps them: this …
  at::Tensor tensor;  // … or that
};

// A value's bytes, to be adopted by other sessions on the same device.
struct SharedValue {
  Spec spec;
  int64_t offset = 0;
  size_t storage_size = 0;
  SharedBytesPtr bytes;
  c10::Device device{c10::kCPU};
};

struct Counters {
  int64_t values = 0;
  int64_t plans = 0;
  int64_t executions = 0;
  int64_t steps = 0;
  int64_t failed_steps = 0;
  int64_t skipped_steps = 0;
  int64_t uploaded = 0;  // bytes
  int64_t fetched = 0;  // bytes
  int64_t memory = 0;  // bytes
  int64_t peak_memory = 0;  // bytes
  int64_t timed = 0;  // executions, step by step
  int64_t batched_executions = 0;  // together with other sessions'
  int64_t batched_members = 0;  // how many ran together, this one counted, over all of these executions
  int64_t batched_steps = 0;  // products computed with others'
  int64_t largest_batch = 0;
  int64_t stopped_executions = 0;  // before their last step
  int64_t kept = 0;  // bytes of freed host memory this process keeps for uploads
  std::array<int64_t, kinds> by_kind{};  // bytes of `memory`
  int64_t away = 0;  // bytes of values that left the device and come back when they are used
};

// A storage that nothing refers to but a session's values, none of which is in use.
struct Leaving {
  Session* session;
  c10::StorageImpl* storage;
  Use use;
  bool away;  // already
};

constexpr size_t most_kept = size_t{1} << 30;

// Every method locks, but those that stop what runs; none needs the GIL.
class Session {
 public:
  // `name` is the device's, for errors; a memory limit of 0 is none. A `budget` and a `batcher` are shared with other
  // sessions, an `account` with those of its tenant, for which it is called `label`. A `flow` is its place among those
  // that take turns.
  Session(
      c10::Device device,
      std::string name,
      int64_t memory_limit,
      BudgetPtr budget = nullptr,
      BatcherPtr batcher = nullptr,
      FlowPtr flow = nullptr,
      AccountPtr account = nullptr,
      std::string label = {})
      : device_(device),
        name_(std::move(name)),
        keep_(memory_limit > 0 ? std::min<size_t>(most_kept, static_cast<size_t>(memory_limit) / 4) : most_kept),
        memory_(memory_limit, std::move(budget), *this, std::move(account), std::move(label)),
        generators_(device),
        timer_(device),
        batcher_(std::move(batcher)),
        flow_(std::move(flow)) {
    if (memory_.budget()) {
      memory_.budget()->enter(this);
    }
  }
  ~Session();

  c10::Device device() const {
    return device_;
  }

  void load(int64_t id, std::shared_ptr<Plan> plan);
  void execute(int64_t id, const uint8_t* bindings, size_t size);

  // The plan repeated: `iterate` runs the next iteration and gives the bytes of what it emits; false: it is over.
  std::shared_ptr<Loop> loop(int64_t id, const uint8_t* bindings, size_t size, LoopSpec spec, int64_t times);
  bool iterate(Loop& loop, std::vector<Bytes>& emitted);

  // `data` are the elements in C order; a spec with strides lays them out so in memory.
  void upload(int64_t handle, const Spec& spec, const void* data, size_t size);
  // Host memory for a value that is yet to come; `commit` makes it one.
  at::Tensor allocate(const Spec& spec);
  void commit(int64_t handle, const at::Tensor& host);

  // A failure in place of a value: for whoever looks at it, and for what is made of it.
  void poison(int64_t handle, Failure failure);

  Spec describe(int64_t handle);
  Bytes fetch(int64_t handle, Spec& spec);
  void fetch_into(int64_t handle, Spec& spec, void* out, size_t size);
  void free(const std::vector<int64_t>& handles);

  SharedValue share(int64_t handle);
  // The same of a value that was just uploaded, and is known by its content: while nobody uses it, it may leave.
  SharedValue share_content(int64_t handle);
  void adopt(int64_t handle, const SharedValue& value);

  void seed(int64_t generator, uint64_t seed);
  std::string generator_state(int64_t generator);
  void set_generator_state(int64_t generator, const void* data, size_t size);

  // The state at this point (snapshot.cpp). Refused when a value has no plain memory.
  Snapshot snapshot();
  // Bytes of a memory that has this version (0: any); a negative size is all that are left.
  Bytes read_memory(int64_t id, int64_t version, int64_t offset, int64_t size);
  MemoryState memory_of(int64_t handle);
  // The state of another session: of each memory the value that holds its bytes now, which is no value any more then.
  // Refused unless these are all the values there are.
  void restore(const Snapshot& snapshot, const std::map<int64_t, int64_t>& staged);

  // From any thread, without waiting: what runs ends before its next operator, and so does all that comes until
  // `resume`. Values not made by then carry the failure. An execution that takes longer than the limit ends so, too.
  void cancel(std::string reason) {
    stop_.ask(std::move(reason));
  }
  void resume() {
    stop_.resume();
  }
  void limit_executions(double seconds) {
    stop_.limit(seconds);
  }

  // What the last execution used is on the device again, as far as it fits.
  void prefetch();
  // Bytes of values that are away. Takes no lock.
  int64_t away() const {
    return memory_.away();
  }
  // Who it works for, for errors of those it shares the device with. Before it is used.
  void name(std::string label, std::string tenant);

  void synchronize();
  Counters counters();
  std::vector<std::string> take_warnings();
  // How long steps took, and how much of the time finding that out may take (1: every execution is timed).
  std::vector<TimingRow> take_timings();
  void set_timing(double share);
  void close();

  class Run;

 private:
  friend class Budget;

  void check_open() const;
  void check_new(int64_t handle) const;
  void insert(int64_t handle, at::Tensor tensor, Kind kind);
  at::Tensor lay_out(const at::Tensor& host, const Spec& spec, int64_t extent);
  // The one place where a value is looked at: it is on the device then.
  const at::Tensor& look(int64_t handle);
  Holder& find(int64_t handle);
  SharedValue share(int64_t handle, bool content);
  // With the lock, of another thread's if it is not at work:
  bool working() const {
    return working_;
  }
  void list_leaving(std::vector<Leaving>& found);
  void use(Holder& holder);
  void bring_back(Holder& holder);
  void bring_back(c10::StorageImpl& storage);
  std::shared_ptr<Plan>& known_plan(int64_t id);
  void run(Plan& plan, const std::vector<uint64_t>& words);
  void end_turn();
  Bytes read(int64_t handle, Spec& spec);
  void set_aside(Loop& loop);
  void drop_aside(const Loop& loop);
  bool is_set(int64_t handle);

  const c10::Device device_;
  const std::string name_;
  std::string label_;
  std::string tenant_;
  const size_t keep_;  // bytes of host memory to be kept for further uploads
  KeepsBlocks keeps_blocks_;
  Stop stop_;
  std::mutex lock_;
  bool open_ = true;
  std::atomic<bool> working_{false};  // an execution is under way, maybe on another thread
  Use use_;  // of the execution under way, or the last
  Memory memory_;
  Generators generators_;
  ska::flat_hash_map<int64_t, Holder> values_;
  std::map<int64_t, std::shared_ptr<Plan>> plans_;
  std::set<std::string> warnings_;
  Timer timer_;
  const BatcherPtr batcher_;  // null: it runs alone
  const FlowPtr flow_;  // null: it takes no turns
  Counters counters_;
  // Reused by every execution.
  torch::jit::Stack stack_;
  std::vector<Holder> own_;
  std::vector<Holder*> slots_;
};

}  // namespace genie_local
