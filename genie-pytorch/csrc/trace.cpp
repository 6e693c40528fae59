#include "trace.h"

#include "adopt.h"
#include "operator.h"

#include <unordered_map>

namespace genie {

namespace {

thread_local std::vector<int64_t> versions;

int64_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<int64_t>(tensor._version());
}

int find_storage(const std::vector<at::Tensor>& tensors, const at::Tensor& wanted, size_t end) {
  for (size_t i = 0; i < end; ++i) {
    if (on_device(tensors[i]) && tensors[i].storage().unsafeGetStorageImpl() == wanted.storage().unsafeGetStorageImpl()) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

} // namespace

void begin_trace(int16_t device, const std::vector<at::Tensor>& inputs) {
  Lock lock;
  auto& stream = stream_for(device, nullptr);
  flush(stream);
  versions.clear();
  for (const auto& input : inputs) {
    if (on_device(input)) {
      touch(stream, input);
    }
    versions.push_back(version_of(input));
  }
  flush(stream);
  stream.tracing = true;
  stream.broken = false;
}

void abandon_trace(int16_t device) {
  Lock lock;
  stream_for(device, nullptr).tracing = false;
}

std::shared_ptr<Trace> end_trace(
    int16_t device, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& outputs) {
  Lock lock;
  auto& stream = stream_for(device, nullptr);
  stream.tracing = false;
  if (stream.broken || stream.segment.commands == 0) {
    return nullptr;
  }
  auto trace = std::make_shared<Trace>();
  trace->device_ = device;

  std::unordered_map<const Value*, int> input_of;
  for (size_t i = 0; i < inputs.size(); ++i) {
    int same = static_cast<int>(i);
    if (on_device(inputs[i])) {
      same = input_of.emplace(value_of(inputs[i]), same).first->second;
    }
    trace->same_value_.push_back(same);
    trace->written_.push_back(i < versions.size() && version_of(inputs[i]) != versions[i]);
  }
  // Held from before the segment is closed, so that none of them is donated.
  for (const auto& leaf : stream.segment.leaves) {
    const auto found = input_of.find(leaf.value.get());
    Trace::Leaf mine;
    if (found != input_of.end()) {
      mine.input = found->second;
    } else {
      mine.constant = leaf.value;
    }
    trace->leaves_.push_back(std::move(mine));
  }
  trace->parameters_ = stream.segment.parameters;

  Closed closed = close(stream);
  std::unordered_map<const Value*, int> made;
  {
    size_t named = 0;
    for (const auto& [index, value] : closed.segment.made) {
      if (named < closed.outputs.size() && closed.outputs[named] == index) {
        made.emplace(value.get(), static_cast<int>(named++));
      }
    }
  }
  bool replayable = true;
  for (size_t i = 0; i < outputs.size(); ++i) {
    Trace::Output output;
    for (size_t k = 0; k < inputs.size() && output.input < 0; ++k) {
      if (inputs[k].is_same(outputs[i])) {
        output.input = static_cast<int>(k);
      }
    }
    if (output.input < 0) {
      if (!on_device(outputs[i])) {
        replayable = false;
        break;
      }
      const auto* value = value_of(outputs[i]);
      const auto found = made.find(value);
      const auto leaf = input_of.find(value);
      output.spec = spec_of(outputs[i]);
      output.base_input = find_storage(inputs, outputs[i], inputs.size());
      output.base_output = output.base_input >= 0 ? -1 : find_storage(outputs, outputs[i], i);
      if (found != made.end()) {
        output.value = found->second;
      } else if (leaf != input_of.end()) {
        output.leaf_input = leaf->second;
      } else {
        replayable = false;
        break;
      }
    }
    trace->outputs_.push_back(std::move(output));
  }
  trace->known_ = run(stream, closed, true, false);
  return replayable ? trace : nullptr;
}

std::vector<at::Tensor> Trace::replay(const std::vector<at::Tensor>& inputs, bool look) {
  TORCH_CHECK(inputs.size() == same_value_.size(), "genie: a compiled program was given another number of tensors");
  Lock lock;
  auto& stream = stream_for(device_, nullptr);
  begin_history(stream);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (on_device(inputs[i])) {
      touch(stream, inputs[i]);
    }
  }
  flush(stream);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const auto first = static_cast<size_t>(same_value_[i]);
    TORCH_CHECK(
        first == i || value_of(inputs[first]) == value_of(inputs[i]),
        "genie: tensors that were one when this program was compiled are two now");
    if (written_[i] && !inputs[i].is_inference()) {
      inputs[i].unsafeGetTensorImpl()->bump_version();
    }
  }
  std::vector<uint64_t> words;
  words.reserve(1 + leaves_.size() + parameters_.size());
  uint64_t handle = 0;
  for (size_t i = 0; i < known_.plan->outputs.size(); ++i) {
    const auto next = new_handle(device_);
    handle = i == 0 ? next : handle;
  }
  if (handle == 0) {
    handle = new_handle(device_, false);
  }
  words.push_back(handle);
  for (const auto& leaf : leaves_) {
    words.push_back(leaf.input >= 0 ? value_of(inputs[static_cast<size_t>(leaf.input)])->handle : leaf.constant->handle);
  }
  words.insert(words.end(), parameters_.begin(), parameters_.end());
  // A value per output of the plan: those the program does not return are dropped, and so freed, at the end.
  std::vector<ValuePtr> values;
  for (size_t i = 0; i < known_.plan->outputs.size(); ++i) {
    values.push_back(c10::make_intrusive<Value>(device_));
    values.back()->handle = handle + i;
  }
  ++counters.segments;
  ++counters.plan_hits;
  execute(stream, known_, std::move(words), look);

  std::vector<at::Tensor> results;
  for (const auto& output : outputs_) {
    if (output.input >= 0) {
      results.push_back(inputs[static_cast<size_t>(output.input)]);
      continue;
    }
    const at::Tensor* base = output.base_input >= 0 ? &inputs[static_cast<size_t>(output.base_input)]
        : output.base_output >= 0                   ? &results[static_cast<size_t>(output.base_output)]
                                                    : nullptr;
    ValuePtr value = output.value >= 0
        ? values[static_cast<size_t>(output.value)]
        : ValuePtr::reclaim_copy(value_of(inputs[static_cast<size_t>(output.leaf_input)]));
    results.push_back(make_tensor(output.spec, std::move(value), base));
  }
  return results;
}

} // namespace genie
