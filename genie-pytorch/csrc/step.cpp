#include "step.h"

#include "adopt.h"

namespace genie {

namespace {

thread_local uint64_t segments_before = 0;

// Of the same size it is laid out alike, else contiguous.
Spec resized(const at::Tensor& like, const std::vector<int64_t>& sizes) {
  if (like.sizes() == c10::IntArrayRef(sizes)) {
    return spec_of(like);
  }
  Spec spec;
  spec.dtype = like.scalar_type();
  spec.sizes.assign(sizes.begin(), sizes.end());
  spec.strides.resize(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    spec.strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  return spec;
}

Stream& begin(int16_t device) {
  auto& stream = stream_for(device, nullptr);
  flush(stream);
  stream.tracing = true;
  stream.broken = false;
  return stream;
}

} // namespace

void begin_step(int16_t device) {
  Lock lock;
  begin(device);
  segments_before = counters.segments;
}

void abandon_step(int16_t device) {
  Lock lock;
  auto& stream = stream_for(device, nullptr);
  stream.tracing = false;
  if (stream.rehearsing) {
    stream.rehearsing = false;
    drop(stream);
  }
}

std::shared_ptr<Step> end_step(int16_t device) {
  Lock lock;
  auto& stream = stream_for(device, nullptr);
  stream.tracing = false;
  if (stream.broken || stream.segment.commands == 0 || counters.segments != segments_before) {
    flush(stream);
    return nullptr;
  }
  auto step = std::make_shared<Step>();
  step->device_ = device;
  step->commands_ = stream.segment.tokens;
  Closed closed = close(stream);
  step->words_ = closed.words;
  for (const auto& leaf : closed.segment.leaves) {
    step->donated_.push_back(leaf.donated);
  }
  step->known_ = run(stream, closed, false, false);
  return step;
}

void begin_rehearsal(int16_t device) {
  Lock lock;
  begin(device).rehearsing = true;
}

std::pair<bool, std::vector<uint64_t>> end_rehearsal(int16_t device, const Step& like) {
  Lock lock;
  auto& stream = stream_for(device, nullptr);
  stream.tracing = stream.rehearsing = false;
  const Segment segment = drop(stream);
  std::vector<uint64_t> words;
  for (const auto& leaf : segment.leaves) {
    words.push_back(leaf.value->handle);
  }
  words.insert(words.end(), segment.parameters.begin(), segment.parameters.end());
  return {!stream.broken && segment.tokens == like.commands_, std::move(words)};
}

at::Tensor stand_in(const at::Tensor& like, uint64_t handle, const std::vector<int64_t>& sizes) {
  Lock lock;
  auto value = c10::make_intrusive<Value>(static_cast<int16_t>(like.device().index()));
  value->handle = handle;
  value->released = true;
  return make_tensor(resized(like, sizes), std::move(value));
}

Repetition::Repetition(const Step& step, std::vector<uint64_t> words) : plan_(step.known().plan) {
  Lock lock;
  flush_all(step.device());
  send_forgotten(step.device());
  for (size_t k = 0; k < plan_->outputs.size(); ++k) {
    auto value = c10::make_intrusive<Value>(step.device());
    value->handle = new_handle(step.device());
    value->maker = &stream_for(step.device(), nullptr);
    values_.push_back(std::move(value));
  }
  TORCH_CHECK(!values_.empty() && words.size() == step.words().size(), "genie: a loop of another plan's words");
  words[0] = values_[0]->handle;
  if (is_spread(step.device())) {
    bindings_.assign(reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint64_t));
  } else {
    bindings_ = plan_->encode(words);
    plan_->doubtful = true;
  }
}

void Repetition::begun() {
  Lock lock;
  plan_->doubtful = false;
}

at::Tensor Repetition::output(size_t k, const at::Tensor& like, const std::vector<int64_t>& sizes) const {
  Lock lock;
  return make_tensor(resized(like, sizes), values_.at(k));
}

void give_up(const at::Tensor& tensor) {
  static const std::string why = "a loop on the node went on with them, and did not come to its end";
  Lock lock;
  touch(stream_for(static_cast<int16_t>(tensor.device().index()), nullptr), tensor);
  auto* value = value_of(tensor);
  value->released = true;
  value->failure = &why;
}

} // namespace genie
