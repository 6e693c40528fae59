#include "stream.h"

#include "port.h"
#include "writer.h"

#include <Python.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <unordered_set>

namespace genie {

Counters counters;

namespace {

std::recursive_mutex recorder;

std::mutex forgotten_guard;
std::unordered_map<int16_t, std::vector<uint64_t>> forgotten;
std::unordered_map<int16_t, std::unordered_set<uint64_t>> alive; // handles of values that somebody holds

std::unordered_map<int16_t, uint64_t> handles;

constexpr size_t kUploads = 1 << 14; // remembered, of a device
struct Uploads {
  std::vector<uint64_t> handles; // in order
  uint64_t known_from = 0;       // handles below may be forgotten uploads
};
std::unordered_map<int16_t, Uploads> uploads;

std::array<std::atomic<bool>, 128> spread_devices{};

std::deque<std::unique_ptr<Stream>> streams;
std::vector<Stream*> idle; // of threads that ended; what they have pending is sent by whoever needs it

// A thread's streams.
struct Mine {
  std::vector<Stream*> streams;
  ~Mine() {
    Lock lock;
    idle.insert(idle.end(), streams.begin(), streams.end());
  }
};
thread_local Mine mine;

thread_local c10::DeviceIndex thread_device = -1; // the program has not said
std::atomic<int> default_device{-1}; // not known yet

uint64_t next_serial() {
  static uint64_t serial = 0;
  return ++serial;
}

struct TokensHash {
  size_t operator()(const std::vector<uint32_t>& tokens) const {
    uint64_t h = 0x9E3779B97F4A7C15ull ^ tokens.size();
    for (const auto token : tokens) {
      h = (h ^ token) * 0xFF51AFD7ED558CCDull;
      h ^= h >> 32;
    }
    return h;
  }
};

// Keyed by the whole structure, compared in full: two plans are never taken for each other.
using PlanTable = std::unordered_map<std::vector<uint32_t>, Known, TokensHash>;
std::unordered_map<int16_t, PlanTable> plans;
// Segments that differ only in what a graph leaves out (two calls on one line) are one plan to the engine.
std::unordered_map<int16_t, std::unordered_map<int64_t, std::shared_ptr<Plan>>> plans_by_id;

} // namespace

void set_spread(int16_t device, bool spread) {
  spread_devices[static_cast<size_t>(device)] = spread;
}

bool is_spread(int16_t device) {
  return spread_devices[static_cast<size_t>(device)];
}

void check_made(const Value& value) {
  if (value.epoch != Value::current_epoch) {
    port::ended(value.device);
  }
  TORCH_CHECK(
      value.failure == nullptr,
      "genie: this tensor has no elements: the operators that make it could not be sent to the node, because: ",
      *value.failure);
}

Lock::Lock() {
  if (recorder.try_lock()) {
    return;
  }
  if (PyGILState_Check()) {
    PyThreadState* state = PyEval_SaveThread();
    recorder.lock();
    PyEval_RestoreThread(state);
  } else {
    recorder.lock();
  }
}

Lock::~Lock() {
  recorder.unlock();
}

c10::DeviceIndex current_device() {
  if (thread_device >= 0) {
    return thread_device;
  }
  auto device = default_device.load(std::memory_order_relaxed);
  if (device < 0) {
    device = port::default_device();
    default_device = device;
  }
  return static_cast<c10::DeviceIndex>(device);
}

void set_current_device(c10::DeviceIndex index) {
  // PyTorch puts back what was: what the program did not say stays unsaid, for it changes with the cluster.
  thread_device = index == default_device ? -1 : index;
}

uint64_t new_handle(int16_t device, bool held) {
  const uint64_t handle = ++handles[device];
  if (!held) {
    return handle;
  }
  std::lock_guard<std::mutex> lock(forgotten_guard);
  alive[device].insert(handle);
  return handle;
}

void correct(const Value& value, const Spec& actual) {
  Lock lock;
  if (value.maker == nullptr || value.maker->history.empty()) {
    return;
  }
  auto& reshaped = value.maker->history.back().reshaped;
  reshaped.push_back(value.index);
  reshaped.push_back(static_cast<int64_t>(actual.sizes.size()));
  reshaped.insert(reshaped.end(), actual.sizes.begin(), actual.sizes.end());
  reshaped.insert(reshaped.end(), actual.strides.begin(), actual.strides.end());
}

bool is_alive(int16_t device, uint64_t handle) {
  std::lock_guard<std::mutex> lock(forgotten_guard);
  return alive[device].count(handle) != 0;
}

From whence(int16_t device, uint64_t handle) {
  const auto found = uploads.find(device);
  if (handle == 0) {
    return From::kUnknown;
  }
  if (found == uploads.end()) {
    return From::kMade;
  }
  const auto& known = found->second;
  if (handle < known.known_from) {
    return From::kUnknown;
  }
  return std::binary_search(known.handles.begin(), known.handles.end(), handle) ? From::kUploaded : From::kMade;
}

void note_upload(int16_t device, uint64_t handle) {
  auto& known = uploads[device];
  if (known.handles.size() == kUploads) {
    known.handles.erase(known.handles.begin(), known.handles.begin() + kUploads / 2);
    known.known_from = known.handles.front();
  }
  known.handles.push_back(handle);
}

void forget(int16_t device, uint64_t handle) {
  std::lock_guard<std::mutex> lock(forgotten_guard);
  forgotten[device].push_back(handle);
  alive[device].erase(handle);
}

void send_forgotten(int16_t device) {
  std::vector<uint64_t> taken;
  {
    std::lock_guard<std::mutex> lock(forgotten_guard);
    taken.swap(forgotten[device]);
  }
  if (!taken.empty()) {
    port::free(device, taken);
  }
}

void Segment::clear(uint64_t next) {
  serial = next;
  tokens.clear();
  parameters.clear();
  leaves.clear();
  made.clear();
  values.clear();
  geometry.clear();
  commands = 0;
}

void Stream::forget_thread() {
  history.clear();
  earlier.clear();
  looked = keep = tracing = broken = rehearsing = false;
  sent_since_look = 0;
}

void Stream::look() {
  looked = true;
  looked_at = handles[device];
}

void Stream::end_history() {
  constexpr size_t kEarlier = 512;
  const size_t kept = std::min(history.size(), kEarlier);
  std::move(history.end() - static_cast<std::ptrdiff_t>(kept), history.end(), std::back_inserter(earlier));
  history.clear();
  if (earlier.size() > kEarlier) {
    earlier.erase(earlier.begin(), earlier.end() - kEarlier);
  }
  viewed_from = looked_at;
}

size_t stream_count() {
  return streams.size();
}

Stream& stream_for(int16_t device, const Value* hint) {
  const bool backward = torch::autograd::get_current_graph_task_id() != -1;
  if (backward && hint != nullptr && hint->maker != nullptr) {
    hint->maker->backward = true;
    return *hint->maker;
  }
  for (auto* stream : mine.streams) {
    if (stream->device == device) {
      stream->backward = backward;
      return *stream;
    }
  }
  const auto left = std::find_if(idle.begin(), idle.end(), [&](Stream* stream) { return stream->device == device; });
  if (left != idle.end()) {
    mine.streams.push_back(*left);
    idle.erase(left);
    mine.streams.back()->forget_thread();
  } else {
    streams.push_back(std::make_unique<Stream>());
    mine.streams.push_back(streams.back().get());
    mine.streams.back()->device = device;
    mine.streams.back()->segment.clear(next_serial());
  }
  mine.streams.back()->backward = backward;
  return *mine.streams.back();
}

void order(Stream& stream, const at::Tensor& tensor) {
  const Value* value = value_of(tensor);
  check_made(*value);
  if (value->pending && value->maker != &stream) {
    flush(*value->maker);
  }
  if (auto* context = context_of(tensor.storage())) {
    Stream* other = context->stream;
    if (other != nullptr && other != &stream && context->segment == other->segment.serial) {
      flush(*other);
    }
  }
}

void begin_history(Stream& stream) {
  ++counters.captured;
  if (!stream.looked) {
    return;
  }
  if (!stream.keep) {
    stream.end_history();
  }
  stream.looked = false;
  stream.sent_since_look = 0;
}

namespace {

void put_varint(std::string& out, uint64_t number) {
  while (number > 0x7F) {
    out.push_back(static_cast<char>((number & 0x7F) | 0x80));
    number >>= 7;
  }
  out.push_back(static_cast<char>(number));
}

} // namespace

std::string Plan::encode(const std::vector<uint64_t>& words) {
  std::string surprises;
  std::string out;
  if (doubtful) {
    put_varint(out, words.size() + 1);
    for (size_t i = 0; i < words.size(); ++i) {
      put_varint(out, words[i]);
      last[i] = words[i];
      step[i] = 0;
    }
    return out;
  }
  uint64_t count = 0;
  size_t after = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    const uint64_t surprise = words[i] - last[i] - step[i];
    if (surprise != 0) {
      put_varint(surprises, i - after);
      put_varint(surprises, (surprise << 1) ^ (surprise >> 63 ? ~uint64_t(0) : 0));
      ++count;
      after = i + 1;
    }
    step[i] = words[i] - last[i];
    last[i] = words[i];
  }
  put_varint(out, count);
  return out + surprises;
}

Segment cut(Stream& stream) {
  Segment segment;
  std::swap(segment, stream.segment);
  std::swap(stream.segment, stream.spare);
  stream.segment.clear(next_serial());
  return segment;
}

Segment drop(Stream& stream) {
  static const std::string why = "they were recorded to see what a program would do, and never sent";
  Segment segment = cut(stream);
  for (auto& [index, value] : segment.made) {
    value->pending = false;
    value->failure = &why;
  }
  return segment;
}

Closed close(Stream& stream) {
  // A flush calls out, and what it calls may drop tensors, never record: the segment is cut off first.
  Closed closed;
  auto& segment = closed.segment;
  segment = cut(stream);
  segment.looked_at = stream.looked_at;

  // What nobody but this segment holds is dead: made values stay unnamed, leaves are donated.
  segment.tokens.push_back(kEnd);
  for (const auto& [index, value] : segment.made) {
    if (value.use_count() > 1) {
      closed.outputs.push_back(index);
      segment.tokens.push_back(index);
    }
  }
  segment.tokens.push_back(kEnd);
  std::vector<uint64_t> gone;
  for (auto& leaf : segment.leaves) {
    leaf.donated = leaf.value.use_count() == 1;
    leaf.value->released = leaf.value->released || leaf.donated;
    if (leaf.donated) {
      gone.push_back(leaf.value->handle);
    }
    segment.tokens.push_back(leaf.donated ? 1 : 0);
  }
  if (!gone.empty()) {
    std::lock_guard<std::mutex> lock(forgotten_guard);
    for (const auto handle : gone) {
      alive[stream.device].erase(handle);
    }
  }
  const auto note_mark = [&](const Value& value, uint32_t index) {
    if (value.mark != 0) {
      segment.tokens.insert(segment.tokens.end(), {kEnd, index, value.mark});
    }
  };
  for (const auto& leaf : segment.leaves) {
    note_mark(*leaf.value, leaf.index);
  }
  for (const auto& [index, value] : segment.made) {
    note_mark(*value, index);
  }

  auto& words = closed.words;
  words.reserve(1 + segment.leaves.size() + segment.parameters.size());
  words.push_back(handles[stream.device] + 1);
  for (const auto& leaf : segment.leaves) {
    words.push_back(leaf.value->handle);
  }
  words.insert(words.end(), segment.parameters.begin(), segment.parameters.end());
  size_t named = 0;
  for (auto& [index, value] : segment.made) {
    value->pending = false;
    if (named < closed.outputs.size() && closed.outputs[named] == index) {
      value->handle = new_handle(stream.device);
      ++named;
    }
  }
  return closed;
}

namespace {

// What of a segment's geometry is not as in the graph of its plan, whose structure is the same.
std::vector<int64_t> changed_shapes(const Segment& segment, const Shapes& shapes) {
  std::vector<int64_t> changes;
  for (size_t i = 0; i < segment.values.size() && i < shapes.values.size(); ++i) {
    const auto* now = segment.geometry.data() + segment.values[i].geometry;
    const auto* before = shapes.geometry.data() + shapes.values[i].geometry;
    const auto length = static_cast<size_t>(1 + 2 * now[0]);
    if (now[0] != before[0] || !std::equal(now + 1, now + length, before + 1)) {
      changes.push_back(static_cast<int64_t>(i));
      changes.insert(changes.end(), now, now + length);
    }
  }
  return changes;
}

} // namespace

void execute(
    Stream& stream, const Known& known, std::vector<uint64_t> words, bool look, std::vector<int64_t> reshaped) {
  send_forgotten(stream.device);
  const auto& plan = known.plan;
  if (is_spread(stream.device)) {
    port::execute_words(stream.device, plan->id, words, look);
  } else {
    const auto bindings = plan->encode(words);
    plan->doubtful = true;
    port::execute(stream.device, plan->id, bindings, look);
    plan->doubtful = false;
  }
  constexpr size_t kHistory = 4096;
  if (stream.history.size() < kHistory) {
    stream.history.push_back({known, std::move(words), std::move(reshaped)});
  }
}

Known run(Stream& stream, Closed& closed, bool whole, bool look) {
  auto& segment = closed.segment;
  ++counters.segments;
  auto& table = plans[stream.device];
  const auto found = table.find(segment.tokens);
  try {
    if (found != table.end()) {
      ++counters.plan_hits;
      const auto known = found->second;
      execute(stream, known, std::move(closed.words), look, changed_shapes(segment, *known.shapes));
      return known;
    }
    ++counters.plan_misses;
    const auto [id, graph] = port::prepare(stream.device, segment, closed.outputs, whole);
    auto& plan = plans_by_id[stream.device][id];
    if (plan == nullptr) {
      plan = std::make_shared<Plan>();
      plan->id = id;
      plan->inputs = static_cast<uint32_t>(segment.leaves.size());
      plan->outputs = closed.outputs;
      plan->last.assign(1 + segment.leaves.size(), 0);
      plan->last.insert(plan->last.end(), segment.parameters.begin(), segment.parameters.end());
      plan->step.assign(plan->last.size(), 0);
    }
    const Known known{
        plan, graph, std::make_shared<Shapes>(Shapes{std::move(segment.values), std::move(segment.geometry)})};
    table.emplace(std::move(segment.tokens), known);
    execute(stream, known, std::move(closed.words), look);
    return known;
  } catch (const std::exception& error) {
    // Kept for good: values may be looked at at any time, and this is rare.
    static std::deque<std::string> failures;
    failures.emplace_back(error.what());
    const auto* failure = &failures.back();
    for (auto& [index, value] : segment.made) {
      // Its handle is freed like any other: the node may have come to know it.
      value->failure = failure;
    }
    throw;
  }
}

void flush(Stream& stream, bool look) {
  if (stream.segment.commands == 0) {
    return;
  }
  TORCH_CHECK(!stream.rehearsing, "genie: a step that was recorded ahead looks at a value");
  stream.broken = stream.broken || stream.tracing;
  Closed closed = close(stream);
  run(stream, closed, false, look);
  closed.segment.clear(0);
  std::swap(stream.spare, closed.segment);
}

void flush_all(int16_t device) {
  for (auto& stream : streams) {
    if (device < 0 || stream->device == device) {
      flush(*stream);
      send_forgotten(stream->device);
    }
  }
}

uint64_t settle(const ValuePtr& value) {
  check_made(*value);
  // Other streams may have writes to this memory pending; a look is rare enough to let them all go. The value's own
  // goes last: the question may travel with it.
  Stream* home = value->home();
  for (auto& stream : streams) {
    if (stream->device == value->device && stream.get() != home) {
      flush(*stream);
      stream->look();
    }
  }
  if (home != nullptr) {
    flush(*home, true);
    home->look();
  }
  check_made(*value);
  TORCH_INTERNAL_ASSERT(value->handle != 0, "genie: a value was looked at that no segment made");
  return value->handle;
}

void maybe_cut(Stream& stream) {
  // Small segments first, so that the node starts early; then large ones, which cost less to send. Where the cut
  // falls within the bounds is decided by the commands themselves.
  const bool early = stream.sent_since_look < 2;
  const uint32_t kLeast = early ? 24 : 96;
  const uint32_t kMost = early ? 96 : 384;
  const uint32_t kOdds = early ? 24 : 64;
  const auto& segment = stream.segment;
  if (stream.tracing) {
    return;
  }
  if (segment.commands >= kMost || (segment.commands >= kLeast && (segment.imprint >> 7) % kOdds == 0)) {
    ++stream.sent_since_look;
    flush(stream);
  }
}

void reset() {
  Lock lock;
  for (auto& stream : streams) {
    for (auto& [index, value] : stream->segment.made) {
      value->pending = false;
    }
    stream->segment.clear(next_serial());
    stream->history.clear();
    stream->earlier.clear();
  }
  ++Value::current_epoch;
  default_device = -1;
  plans.clear();
  plans_by_id.clear();
  std::lock_guard<std::mutex> guard(forgotten_guard);
  alive.clear();
  forgotten.clear();
}

} // namespace genie
