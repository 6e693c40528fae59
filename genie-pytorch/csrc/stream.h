// The command stream: operators in the order the program issued them, cut into segments, each sent as a plan.
#pragma once

#include "value.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace genie {

struct Operator;

struct Leaf {
  ValuePtr value;
  uint32_t index; // value index
  bool donated = false; // set when the segment is closed
};

// What is kept of a value for the graph: enough to print it, little enough to keep for every operator.
struct ValueNote {
  at::ScalarType dtype;
  uint32_t geometry; // into Segment::geometry: rank, sizes, strides
};

// A plan the node already has, and both sides' memory of its last execution (see genie.bindings).
struct Plan {
  int64_t id;
  std::vector<uint64_t> last;
  std::vector<uint64_t> step;
  std::vector<uint32_t> outputs;
  uint32_t inputs;
  bool doubtful = false; // an execution broke off: the node may or may not have seen it
  std::string encode(const std::vector<uint64_t>& words);
};

// Geometry of a segment's values: of each, where its own begins (rank, sizes, strides).
struct Shapes {
  std::vector<ValueNote> values;
  std::vector<int64_t> geometry;
};

// A structure's plan, and the graph it was made from: structures that are one plan may differ in what a plan leaves
// out, such as lines and marks. `shapes` are the graph's.
struct Known {
  std::shared_ptr<Plan> plan;
  int64_t graph = -1;
  std::shared_ptr<const Shapes> shapes;
};

struct Segment {
  uint64_t serial = 0;
  std::vector<uint32_t> tokens; // see writer.h
  std::vector<uint64_t> parameters;
  std::vector<Leaf> leaves;
  std::vector<std::pair<uint32_t, ValuePtr>> made; // fresh values: index, value
  std::vector<ValueNote> values;
  std::vector<int64_t> geometry;
  uint32_t commands = 0;
  uint32_t imprint = 0;   // hash of the last command's operator, module, source and scope
  uint64_t looked_at = 0; // set when it is closed: the last handle there was when the program looked last
  void clear(uint64_t next_serial);
};

// One thread's work on one device. Streams are never freed, for values name them; the next thread takes them over.
struct Stream {
  int16_t device = 0;
  Segment segment;
  Segment spare; // the last segment's buffers, for the next
  // Executions since the last look or since the capture began, for the program's view of its graph, and a bounded
  // number of those before, to say where its inputs come from.
  struct Sent {
    Known known;
    std::vector<uint64_t> words;
    std::vector<int64_t> reshaped; // of each value whose geometry is not the graph's: index, rank, sizes, strides
  };
  std::vector<Sent> history;
  std::deque<Sent> earlier;
  uint64_t looked_at = 0;   // the last handle there was when the program looked last …
  uint64_t viewed_from = 0; // … before the history began
  bool backward = false;    // whether a backward pass issues the operator that is being recorded
  bool looked = false; // the next command starts a new history, …
  bool keep = false;   // … unless a region is being captured
  uint32_t sent_since_look = 0;
  bool tracing = false; // a whole program is being traced: it must stay one segment
  bool broken = false; // … and did not
  bool rehearsing = false; // what is recorded is never sent: see step.h
  // Another thread goes on with it: it keeps what is pending, and nothing of the thread that ended.
  void forget_thread();
  // The program looks at a value.
  void look();
  // The history ends: it is of earlier executions from now on.
  void end_history();
};

struct Counters {
  uint64_t operators = 0;
  uint64_t captured = 0; // operators, and programs that were run whole
  uint64_t segments = 0;
  uint64_t plan_hits = 0;
  uint64_t plan_misses = 0;
  uint64_t syncs = 0;
  uint64_t memo_hits = 0;
  uint64_t memo_misses = 0;
  uint64_t asked_node = 0;
  uint64_t record_ns = 0; // see timer.h
  uint64_t timed = 0;     // operators up to the last that was timed
};
extern Counters counters;

// The recorder's one lock. Taken without holding the GIL while waiting, so that a holder may ask for the GIL.
class Lock {
 public:
  Lock();
  ~Lock();
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
};

// Where tensors go that name no index: what the program set, else what the application says.
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex index);

// The stream the calling thread records to. A backward pass runs on threads of its own: it records where its
// operands were made, so that a training step is one stream.
Stream& stream_for(int16_t device, const Value* hint);
size_t stream_count();

// Sends what other streams have pending on a tensor's memory. Raises for a value that was never made.
void order(Stream& stream, const at::Tensor& tensor);
void check_made(const Value& value);

// A device may stand for several. Its session wants an execution's words as they are, and operators over lists are
// recorded tensor by tensor, for each is where it is.
void set_spread(int16_t device, bool spread);
bool is_spread(int16_t device);

// A segment cut off its stream, with all that its execution needs.
struct Closed {
  Segment segment;
  std::vector<uint32_t> outputs; // values somebody still holds
  std::vector<uint64_t> words;   // see genie.bindings
};

// Cuts the pending segment off; `drop` forgets it, and its values were never made.
Segment cut(Stream& stream);
Segment drop(Stream& stream);

// The two halves of a flush. Closing names what survives; running makes the plan, or finds it, and executes it.
Closed close(Stream& stream);
Known run(Stream& stream, Closed& closed, bool whole, bool look);
// Executes a plan again: bindings, frees, history.
void execute(
    Stream& stream, const Known& known, std::vector<uint64_t> words, bool look, std::vector<int64_t> reshaped = {});

// Called before a command or an execution: after a look, the program's view of its graph starts anew.
void begin_history(Stream& stream);

// Sends what `stream` has pending. `look`: a question to the node follows at once. The caller holds the lock.
void flush(Stream& stream, bool look = false);
// Sends everything pending on a device (or on all, with -1).
void flush_all(int16_t device);
// Sends what must be sent before `value` can be looked at; gives its handle.
uint64_t settle(const ValuePtr& value);
// Called after each command: cuts the stream at places that depend on its content alone, so that a loop is cut
// at the same places each time round.
void maybe_cut(Stream& stream);

// `held`: a value will have it.
uint64_t new_handle(int16_t device, bool held = true);
// How a value came to be on the device. Uploads are remembered up to a number: what is older than those is unknown.
enum class From { kUnknown, kUploaded, kMade };
From whence(int16_t device, uint64_t handle);
void note_upload(int16_t device, uint64_t handle); // in the order of handles
void forget(int16_t device, uint64_t handle); // any thread, no lock
// What the node says of the geometry of a value that was just made goes into the program's view of its graph.
void correct(const Value& value, const Spec& actual);
// Whether somebody still holds the value with this handle.
bool is_alive(int16_t device, uint64_t handle);
// Tells the node of the values nobody holds any more. The caller holds the lock.
void send_forgotten(int16_t device);

// The sessions end: what was pending or planned means nothing any more. Values already sent are dead names.
void reset();

} // namespace genie
