#include "stream.h"

#include "operator.h"
#include "port.h"
#include "source.h"

#include <Python.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <cstring>
#include <deque>

namespace genie {

Counters counters;

namespace {

std::recursive_mutex recorder;

std::mutex forgotten_guard;
std::unordered_map<int16_t, std::vector<uint64_t>> forgotten;

std::unordered_map<int16_t, uint64_t> handles;

std::deque<std::unique_ptr<Stream>> streams;

thread_local c10::DeviceIndex thread_device = 0;

uint64_t next_serial() {
  static uint64_t serial = 0;
  return ++serial;
}

std::deque<std::string> strings;
std::unordered_map<std::string, uint32_t> string_ids;

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
using PlanTable = std::unordered_map<std::vector<uint32_t>, std::shared_ptr<Plan>, TokensHash>;
std::unordered_map<int16_t, PlanTable> plans;
// Segments that differ only in what a graph leaves out (two calls on one line) are one plan to the engine.
std::unordered_map<int16_t, std::unordered_map<int64_t, std::shared_ptr<Plan>>> plans_by_id;

} // namespace

namespace {

void check_made(const Value& value) {
  if (value.epoch != Value::current_epoch) {
    port::ended(value.device);
  }
  TORCH_CHECK(
      value.failure == nullptr,
      "genie: this tensor has no elements: the operators that make it could not be sent to the node, because: ",
      *value.failure);
}

} // namespace

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
  return thread_device;
}

void set_current_device(c10::DeviceIndex index) {
  thread_device = index;
}

uint64_t new_handle(int16_t device) {
  return ++handles[device];
}

void forget(int16_t device, uint64_t handle) {
  std::lock_guard<std::mutex> lock(forgotten_guard);
  forgotten[device].push_back(handle);
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

uint32_t intern(const std::string& text) {
  const auto [found, fresh] = string_ids.emplace(text, static_cast<uint32_t>(strings.size()));
  if (fresh) {
    strings.push_back(text);
  }
  return found->second;
}

const std::string& interned(uint32_t id) {
  return strings.at(id);
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

Stream& stream_for(int16_t device, const Value* hint) {
  if (torch::autograd::get_current_graph_task_id() != -1 && hint != nullptr && hint->maker != nullptr) {
    return *hint->maker;
  }
  thread_local std::unordered_map<int16_t, Stream*> mine;
  thread_local Stream* last = nullptr;
  if (last != nullptr && last->device == device) {
    return *last;
  }
  auto& stream = mine[device];
  if (stream == nullptr) {
    streams.push_back(std::make_unique<Stream>());
    stream = streams.back().get();
    stream->device = device;
    stream->segment.clear(next_serial());
  }
  last = stream;
  return *stream;
}

uint32_t note_value(Segment& segment, const Spec& spec) {
  auto& geometry = segment.geometry;
  const auto rank = spec.sizes.size();
  // Values in a row are often alike.
  const bool again = !segment.values.empty() && [&] {
    const auto* last = geometry.data() + segment.values.back().geometry;
    return last[0] == static_cast<int64_t>(rank) && std::equal(spec.sizes.begin(), spec.sizes.end(), last + 1) &&
        std::equal(spec.strides.begin(), spec.strides.end(), last + 1 + rank);
  }();
  const auto position = again ? segment.values.back().geometry : static_cast<uint32_t>(geometry.size());
  if (!again) {
    geometry.push_back(static_cast<int64_t>(rank));
    geometry.insert(geometry.end(), spec.sizes.begin(), spec.sizes.end());
    geometry.insert(geometry.end(), spec.strides.begin(), spec.strides.end());
  }
  segment.values.push_back({spec.dtype, position});
  return static_cast<uint32_t>(segment.values.size() - 1);
}


void touch(Stream& stream, const at::Tensor& tensor) {
  if (value_of(tensor) == nullptr) {
    adopt(stream, tensor);
  }
  Value* value = value_of(tensor);
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
  if (stream.looked && !stream.keep) {
    stream.history.clear();
  }
  if (stream.looked) {
    stream.looked = false;
    stream.sent_since_look = 0;
  }
}

// --- writing -----------------------------------------------------------------------------------

Writer::Writer(Stream& stream, uint32_t op, uint32_t arguments) : stream_(stream), segment_(stream.segment) {
  begin_history(stream);
  const uint32_t module = current_module();
  const uint32_t source = current_source();
  auto& tokens = segment_.tokens;
  tokens.push_back(kOp);
  tokens.push_back(op);
  tokens.push_back(module);
  tokens.push_back(source);
  tokens.push_back(arguments);
  segment_.mark = (op * 2654435761u) ^ (source * 40503u) ^ (module * 69069u);
  ++segment_.commands;
  ++counters.operators;
}

void Writer::value(const at::Tensor& tensor) {
  Value* value = value_of(tensor);
  if (value->segment != segment_.serial) {
    value->segment = segment_.serial;
    value->index = note_value(segment_, spec_of(tensor));
    segment_.leaves.push_back({ValuePtr::reclaim_copy(value), value->index});
  }
  if (auto* context = context_of(tensor.storage())) {
    context->stream = &stream_;
    context->segment = segment_.serial;
  }
  put(kValue, value->index);
}

void Writer::value(const ValuePtr& value, const Spec& spec) {
  if (value->segment != segment_.serial) {
    value->segment = segment_.serial;
    value->index = note_value(segment_, spec);
    segment_.leaves.push_back({value, value->index});
  }
  put(kValue, value->index);
}

void Writer::integer(int64_t number) {
  put(kInt);
  segment_.parameters.push_back(static_cast<uint64_t>(number));
}

void Writer::real(double number) {
  put(kFloat);
  uint64_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  segment_.parameters.push_back(bits);
}

void Writer::complex(c10::complex<double> number) {
  uint32_t words[4];
  const double parts[2] = {number.real(), number.imag()};
  std::memcpy(words, parts, sizeof words);
  put(kComplex);
  segment_.tokens.insert(segment_.tokens.end(), words, words + 4);
}

void Writer::string(const std::string& text) {
  put(kString, intern(text));
}

void Writer::host_scalar(const at::Tensor& tensor) {
  put(kHostScalar, static_cast<uint32_t>(tensor.scalar_type()));
  segment_.tokens.push_back(tensor.unsafeGetTensorImpl()->is_wrapped_number() ? 1u : 0u);
  const auto scalar = tensor.item();
  if (scalar.isBoolean()) {
    boolean(scalar.toBool());
  } else if (scalar.isFloatingPoint()) {
    real(scalar.toDouble());
  } else {
    integer(scalar.toLong());
  }
}

ValuePtr Writer::make(const Spec& spec) {
  auto value = c10::make_intrusive<Value>(stream_.device);
  value->segment = segment_.serial;
  value->index = note_value(segment_, spec);
  value->maker = &stream_;
  value->pending = true;
  segment_.made.emplace_back(value->index, value);
  return value;
}

ValuePtr Writer::fresh(const Spec& spec) {
  put(kReturns, 1);
  put(1u);
  return make(spec);
}

void Writer::returns(const std::vector<Spec>& specs, std::vector<ValuePtr>& values) {
  put(kReturns, static_cast<uint32_t>(specs.size()));
  for (const auto& spec : specs) {
    put(spec.defined ? 1u : 0u);
    values.push_back(spec.defined ? make(spec) : ValuePtr());
  }
}

// --- sending -----------------------------------------------------------------------------------

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

Closed close(Stream& stream) {
  // A flush calls out, and what it calls may drop tensors, never record: the segment is cut off first.
  Closed closed;
  auto& segment = closed.segment;
  std::swap(segment, stream.segment);
  std::swap(stream.segment, stream.spare);
  stream.segment.clear(next_serial());

  // What nobody but this segment holds is dead: made values stay unnamed, leaves are donated.
  segment.tokens.push_back(kEnd);
  for (const auto& [index, value] : segment.made) {
    if (value.use_count() > 1) {
      closed.outputs.push_back(index);
      segment.tokens.push_back(index);
    }
  }
  segment.tokens.push_back(kEnd);
  for (auto& leaf : segment.leaves) {
    leaf.donated = leaf.value.use_count() == 1;
    leaf.value->released = leaf.value->released || leaf.donated;
    segment.tokens.push_back(leaf.donated ? 1 : 0);
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

void execute(Stream& stream, const std::shared_ptr<Plan>& plan, std::vector<uint64_t> words, bool look) {
  send_forgotten(stream.device);
  const auto bindings = plan->encode(words);
  plan->doubtful = true;
  port::execute(stream.device, plan->id, bindings, look);
  plan->doubtful = false;
  constexpr size_t kHistory = 4096;
  if (stream.history.size() < kHistory) {
    stream.history.push_back({plan, std::move(words)});
  }
}

std::shared_ptr<Plan> run(Stream& stream, Closed& closed, bool whole, bool look) {
  auto& segment = closed.segment;
  ++counters.segments;
  auto& table = plans[stream.device];
  const auto found = table.find(segment.tokens);
  try {
    if (found != table.end()) {
      ++counters.plan_hits;
      const auto plan = found->second;
      execute(stream, plan, std::move(closed.words), look);
      return plan;
    }
    ++counters.plan_misses;
    const auto id = port::prepare(stream.device, segment, closed.outputs, whole);
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
    table.emplace(std::move(segment.tokens), plan);
    execute(stream, plan, std::move(closed.words), look);
    return plan;
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
      stream->looked = true;
    }
  }
  if (home != nullptr) {
    flush(*home, true);
    home->looked = true;
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
  if (segment.commands >= kMost || (segment.commands >= kLeast && (segment.mark >> 7) % kOdds == 0)) {
    ++stream.sent_since_look;
    flush(stream);
  }
}

namespace {

const Operator& find_operator(const char* name, const char* overload) {
  return operator_for(c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

ValuePtr write_empty(Stream& stream, int64_t length, at::ScalarType dtype) {
  static const Operator& empty = find_operator("aten::empty", "memory_format");
  Writer writer(stream, empty.id, 6);
  writer.list(1);
  writer.integer(length);
  writer.dtype(dtype);
  writer.none();
  writer.device(true);
  writer.none();
  writer.none();
  Spec spec;
  spec.sizes = {length};
  spec.strides = {1};
  spec.dtype = dtype;
  std::vector<ValuePtr> values;
  writer.returns({spec}, values);
  return values[0];
}

} // namespace

void adopt(Stream& stream, const at::Tensor& tensor) {
  static const Operator& set = find_operator("aten::set_", "source_Tensor_storage_offset");
  const auto dtype = tensor.scalar_type();
  ValuePtr value = write_empty(stream, 0, dtype);
  auto* context = context_of(tensor.storage());
  ValuePtr base = context == nullptr ? ValuePtr() : context->latest.lock();
  if (!base && context != nullptr) {
    base = context->first.lock();
  }
  TORCH_CHECK(
      base || tensor.storage().nbytes() == 0,
      "genie: no tensor is left that names this storage on remote_accelerator; keep the tensor it came from alive");
  if (base) {
    check_made(*base);
    if (base->pending && base->maker != &stream) {
      flush(*base->maker);
    }
    // set_ takes the memory of a contiguous tensor from its first element on: an empty one at the very start.
    static const Operator& as_strided = find_operator("aten::as_strided", "");
    Spec nothing;
    nothing.sizes = {0};
    nothing.strides = {1};
    nothing.dtype = dtype;
    ValuePtr start;
    {
      Spec memory; // all that is known of the base here
      memory.sizes = {static_cast<int64_t>(tensor.storage().nbytes())};
      memory.strides = {1};
      memory.dtype = at::kByte;
      Writer writer(stream, as_strided.id, 4);
      writer.value(base, memory);
      writer.list(1);
      writer.integer(0);
      writer.list(1);
      writer.integer(1);
      writer.integer(0);
      std::vector<ValuePtr> values;
      writer.returns({nothing}, values);
      start = std::move(values[0]);
    }
    Writer writer(stream, set.id, 5);
    writer.value(value, nothing);
    writer.value(start, nothing);
    writer.integer(tensor.storage_offset());
    writer.list(tensor.dim());
    for (const auto size : tensor.sizes()) {
      writer.integer(size);
    }
    writer.list(tensor.dim());
    for (const auto stride : tensor.strides()) {
      writer.integer(stride);
    }
    std::vector<ValuePtr> none;
    writer.returns({}, none);
  }
  set_value(tensor, std::move(value));
}

void reset() {
  Lock lock;
  for (auto& stream : streams) {
    for (auto& [index, value] : stream->segment.made) {
      value->pending = false;
    }
    stream->segment.clear(next_serial());
    stream->history.clear();
  }
  ++Value::current_epoch;
  plans.clear();
  plans_by_id.clear();
  std::lock_guard<std::mutex> guard(forgotten_guard);
  forgotten.clear();
}

ValuePtr make_root(int64_t nbytes, int16_t device) {
  Lock lock;
  return write_empty(stream_for(device, nullptr), nbytes, at::kByte);
}

} // namespace genie
