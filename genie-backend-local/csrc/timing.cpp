#include "timing.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <mutex>
#include <set>

#include "names.h"
#include "run.h"

namespace genie_local {
namespace {

constexpr size_t most_rows = 4096;
constexpr size_t most_pending = 4;
constexpr double most_allowance = 5e-3;  // seconds: after a pause nobody is timed for long
constexpr double memory = 0.9;  // how much what was seen before counts

double seconds_of(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// The least of some tries: what is measured besides is no cost of the clock.
double cost_of_clock() {
  using Clock = std::chrono::steady_clock;
  auto least = Clock::duration::max();
  auto last = Clock::now();
  for (int i = 0; i < 64; ++i) {
    const auto now = Clock::now();
    least = std::min(least, now - last);
    last = now;
  }
  return seconds_of(least);
}

}  // namespace

const std::string* phase_named(const std::string& name) {
  static std::mutex lock;
  static std::set<std::string> names;
  const std::lock_guard<std::mutex> guard(lock);
  return &*names.insert(name).first;
}

size_t TimingKeyHash::operator()(const TimingKey& key) const {
  // FNV-1a over words.
  uint64_t hash = 0xcbf29ce484222325U ^ reinterpret_cast<uintptr_t>(key.op);
  const auto mix = [&hash](uint64_t word) { hash = (hash ^ word) * 0x100000001b3U; };
  mix(reinterpret_cast<uintptr_t>(key.phase));
  mix(key.operands);
  for (const auto word : key.words) {
    mix(static_cast<uint64_t>(word));
  }
  return hash ^ (hash >> 32);
}

Timer::Timer(c10::Device device) : device_(device), tick_(cost_of_clock()) {}

bool Timer::due(Plan& plan) {
  settle();
  const auto steps = static_cast<double>(plan.steps.size());
  const bool first = plan.executions++ == 0;
  if (share_ >= 1) {
    return pending_.size() < most_pending;
  }
  if (share_ <= 0) {
    return false;
  }
  const double usual = plan.usual > 0 ? plan.usual : steps * step_;
  allowance_ = std::min(allowance_ + share_ * usual, most_allowance);
  // A first execution is no usual one: kernels are chosen, memory is touched for the first time.
  return !first && allowance_ >= steps * cost_ && pending_.size() < most_pending;
}

void Timer::begin() {
  inside_ = 0;
  began_ = Clock::now();
  if (!device_.is_cpu()) {
    events_.emplace();
    record(*events_);
  }
}

void Timer::note(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.layout() != c10::kStrided || name_of(tensor.scalar_type()) == nullptr) {
    known_ = false;
    return;
  }
  const auto sizes = tensor.sizes();
  key_.words.push_back(
      static_cast<int64_t>(tensor.scalar_type()) | (tensor.is_contiguous() ? 1 << 8 : 0) |
      static_cast<int64_t>(sizes.size()) << 16);
  key_.words.insert(key_.words.end(), sizes.begin(), sizes.end());
}

void Timer::before(const Step& step, const std::vector<Holder*>& slots) {
  key_.op = step.op.get();
  key_.phase = step.phase;
  key_.operands = 0;
  key_.words.clear();
  known_ = !step.regional && !step.compiled;  // what these take, their operands do not tell
  const auto operand = [&](int64_t value) {
    note(slots[value]->tensor);
    ++key_.operands;
  };
  for (const auto& argument : step.arguments) {
    if (argument.kind == Argument::Kind::value) {
      operand(argument.value);
    }
    for (const auto value : argument.values) {
      if (value >= 0) {
        operand(value);
      }
    }
  }
  started_ = Clock::now();
}

void Timer::performed(const Step& step, const std::vector<Holder*>& slots, bool done) {
  took_ = seconds_of(Clock::now() - started_) - tick_;
  known_ &= done;
  if (known_) {
    for (const auto value : step.outputs) {
      if (value >= 0) {
        note(slots[value]->tensor);
      }
    }
  }
  started_ = Clock::now();
}

void Timer::released(const Step& step) {
  took_ = std::max(took_ + seconds_of(Clock::now() - started_) - tick_, 0.0);
  inside_ += took_;
  if (events_) {
    events_->keys.emplace_back(known_ ? step.op : nullptr, key_);
    record(*events_);
  } else if (known_ && device_.is_cpu()) {
    add(step.op, key_, took_);
  }
}

void Timer::end(Plan& plan) {
  ++timed_;
  const auto all = seconds_of(Clock::now() - began_);
  const auto steps = static_cast<double>(std::max<size_t>(plan.steps.size(), 1));
  const auto cost = std::max(all - inside_, 0.0);
  if (share_ < 1) {
    allowance_ -= cost;
  }
  cost_ = memory * cost_ + (1 - memory) * cost / steps;
  step_ = memory * step_ + (1 - memory) * inside_ / steps;
  plan.usual = inside_;
  if (events_) {
    pending_.push_back(std::move(*events_));
    events_.reset();
  }
}

void Timer::add(const OperatorPtr& op, const TimingKey& key, double seconds) {
  auto found = sums_.find(key);
  if (found == sums_.end()) {
    if (sums_.size() >= most_rows) {
      return;
    }
    found = sums_.emplace(key, Sums{}).first;
    found->second.op = op;
    found->second.least = seconds;
  }
  auto& sums = found->second;
  sums.latest[static_cast<size_t>(sums.count) % recent] = static_cast<float>(seconds);
  ++sums.count;
  const auto difference = seconds - sums.mean;
  sums.mean += difference / static_cast<double>(sums.count);
  sums.squares += difference * (seconds - sums.mean);
  sums.least = std::min(sums.least, seconds);
}

void Timer::record(Pending& pending) {
  try {
    pending.events.emplace_back(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
    pending.events.back().record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  } catch (const c10::Error&) {  // a device without events is not timed
    share_ = 0;
    events_.reset();
    known_ = false;
  }
}

void Timer::settle() {
  try {
    while (!pending_.empty() && pending_.front().events.back().query()) {
      const auto& done = pending_.front();
      for (size_t i = 0; i < done.keys.size(); ++i) {
        if (done.keys[i].first != nullptr) {
          add(done.keys[i].first, done.keys[i].second, done.events[i].elapsedTime(done.events[i + 1]) / 1e3);
        }
      }
      pending_.pop_front();
    }
  } catch (const c10::Error&) {
    share_ = 0;
    pending_.clear();
  }
}

std::vector<TimingRow> Timer::take() {
  settle();
  std::vector<TimingRow> rows;
  rows.reserve(sums_.size());
  for (const auto& [key, sums] : sums_) {
    TimingRow row;
    row.target = sums.op->name;
    row.phase = *key.phase;
    for (size_t at = 0; at < key.words.size();) {
      const auto head = key.words[at++];
      const auto rank = static_cast<size_t>(head >> 16);
      TimedTensor tensor{
          static_cast<c10::ScalarType>(head & 0xff),
          (head >> 8 & 1) != 0,
          {key.words.begin() + static_cast<ptrdiff_t>(at), key.words.begin() + static_cast<ptrdiff_t>(at + rank)}};
      at += rank;
      auto& tensors = row.operands.size() < key.operands ? row.operands : row.results;
      tensors.push_back(std::move(tensor));
    }
    auto latest = sums.latest;
    const auto many = std::min<size_t>(static_cast<size_t>(sums.count), recent);
    const auto middle = latest.begin() + static_cast<ptrdiff_t>(many / 2);
    std::nth_element(latest.begin(), middle, latest.begin() + static_cast<ptrdiff_t>(many));
    row.typical = *middle;
    row.count = sums.count;
    row.mean = sums.mean;
    row.least = sums.least;
    row.variance = sums.squares / static_cast<double>(sums.count);
    rows.push_back(std::move(row));
  }
  sums_.clear();
  return rows;
}

void Session::Run::timed() {
  auto& timer = session_.timer_;
  const auto& counters = session_.counters_;
  timer.begin();
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    auto& its = plan_.steps[i];
    const auto failed = counters.failed_steps + counters.skipped_steps;
    timer.before(its, session_.slots_);
    perform(its, i);
    timer.performed(its, session_.slots_, counters.failed_steps + counters.skipped_steps == failed);
    release(its);
    timer.released(its);
  }
  timer.end(plan_);
}

}  // namespace genie_local
