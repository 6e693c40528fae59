#include "turnstile.h"

#include <algorithm>
#include <utility>

namespace genie_local {
namespace {

// Who was away for less keeps its place: between two turns there is always a message to be read.
constexpr auto grace = std::chrono::milliseconds(10);
constexpr int64_t most_missed = 6;

}  // namespace

Flow::Flow(std::shared_ptr<Turnstile> turnstile, std::shared_ptr<Flow> parent, double weight)
    : turnstile_(std::move(turnstile)),
      parent_(std::move(parent)),
      above_(parent_ ? parent_.get() : turnstile_ ? turnstile_->root_.get() : nullptr),
      weight_(weight) {
  if (above_ != nullptr) {
    const std::lock_guard<std::mutex> lock(turnstile_->lock_);
    above_->below_.push_back(this);
  }
}

Flow::~Flow() {
  if (above_ != nullptr) {
    const std::lock_guard<std::mutex> lock(turnstile_->lock_);
    auto& siblings = above_->below_;
    siblings.erase(std::remove(siblings.begin(), siblings.end(), this), siblings.end());
    if (turnstile_->last_ == this) {
      turnstile_->last_ = nullptr;
    }
    if (turnstile_->kept_for_ == this) {
      turnstile_->kept_for_ = nullptr;
    }
  }
}

void Flow::set_weight(double weight) {
  const std::lock_guard<std::mutex> lock(turnstile_->lock_);
  weight_ = weight;
}

double Flow::seconds() const {
  const std::lock_guard<std::mutex> lock(turnstile_->lock_);
  return seconds_;
}

Turnstile::Turnstile(int64_t lanes)
    : lanes_(lanes > 0 ? lanes : cpu_lanes()), root_(std::make_unique<Flow>(nullptr, nullptr, 1.0)) {}

Turnstile::~Turnstile() = default;

void Turnstile::enter(Ticket& ticket) {
  std::unique_lock<std::mutex> lock(lock_);
  const auto now = Clock::now();
  for (auto* flow : ticket.flows) {
    come(*flow, now);
  }
  ticket.entered = true;
  if (ticket.flows.size() == 1 && alone(*ticket.flows.front(), now)) {
    ++running_;
    grant(ticket, *ticket.flows.front());
    return;
  }
  waiting_.push_back(&ticket);
  while (ticket.winner == nullptr) {
    const auto until = dispatch(Clock::now());
    if (ticket.winner != nullptr) {
      break;
    }
    if (until == Time::max()) {
      ticket.called.wait(lock);
    } else {
      ticket.called.wait_until(lock, until);
    }
  }
}

void Turnstile::join(Ticket& ticket, Flow& flow) {
  const std::lock_guard<std::mutex> lock(lock_);
  ticket.flows.push_back(&flow);
  if (ticket.entered) {
    come(flow, Clock::now());
    if (ticket.winner != nullptr) {
      begin(flow);
    } else {
      ticket.called.notify_one();  // it may be the one that is due
    }
  }
}

void Turnstile::give_up(const std::vector<Flow*>& flows) {
  const std::lock_guard<std::mutex> lock(lock_);
  for (auto* leaf : flows) {
    for (auto* flow = leaf; flow->above_ != nullptr; flow = flow->above_) {
      --flow->running_;
    }
  }
}

void Turnstile::leave(const std::vector<Flow*>& flows, double seconds) {
  const std::lock_guard<std::mutex> lock(lock_);
  const auto now = Clock::now();
  const auto part = seconds / static_cast<double>(flows.size());
  for (auto* leaf : flows) {
    leaf->usual_ = leaf->usual_ == 0 ? part : 0.7 * leaf->usual_ + 0.3 * part;
    for (auto* flow = leaf; flow->above_ != nullptr; flow = flow->above_) {
      flow->tag_ += part / flow->weight_;
      flow->seconds_ += part;
      flow->left_ = now;
      --flow->running_;
    }
    leaf->skipped_ = std::max<int64_t>(leaf->skipped_ - 1, 0);
  }
  --running_;
  if (!waiting_.empty() && dispatch(now) != Time::max()) {
    waiting_.front()->called.notify_one();  // somebody has to look at the clock
  }
}

bool Turnstile::contended() {
  const std::lock_guard<std::mutex> lock(lock_);
  return !waiting_.empty() || Clock::now() - other_ < longest_pause;
}

// It wants a turn. Who was not here has no claim to what went by meanwhile.
void Turnstile::come(Flow& leaf, Time now) {
  if (kept_for_ == &leaf) {
    kept_for_ = nullptr;
    leaf.gap_ = usual_pause(leaf.gap_, now - leaf.left_);
    leaf.missed_ = 0;
  }
  for (auto* flow = &leaf; flow->above_ != nullptr; flow = flow->above_) {
    if (flow->waiting_ + flow->running_ == 0 && now - flow->left_ > grace) {
      flow->tag_ = std::max(flow->tag_, flow->above_->clock_);
    }
    ++flow->waiting_;
  }
  if (last_ != &leaf) {
    last_ = &leaf;
    other_ = now;
  }
}

void Turnstile::begin(Flow& leaf) {
  for (auto* flow = &leaf; flow->above_ != nullptr; flow = flow->above_) {
    --flow->waiting_;
    ++flow->running_;
  }
}

// Nobody else is or was here: then there is nothing to decide.
bool Turnstile::alone(const Flow& flow, Time now) const {
  return waiting_.empty() && running_ < lanes_ && last_ == &flow && now - other_ > longest_pause;
}

Time Turnstile::back_at(const Flow& flow) {
  return flow.left_ + as_duration(flow.gap_ > 0 ? 1.5 * flow.gap_ : flow.usual_) + slack;
}

// Not here, and likely to be back at once, as far as is known. Whether it is shows when the device is kept for it: what
// it takes otherwise says nothing, since those that have their turns meanwhile may be what holds it up.
bool Turnstile::expected(const Flow& flow, Time now) {
  return flow.below_.empty() && flow.waiting_ + flow.running_ == 0 && flow.usual_ > 0 && flow.skipped_ == 0 &&
      now < back_at(flow);
}

bool Turnstile::active(const Flow& flow, Time now) {
  return flow.waiting_ > 0 || expected(flow, now) ||
      std::any_of(flow.below_.begin(), flow.below_.end(), [now](const Flow* each) { return active(*each, now); });
}

// The leaf that is due, be it here or not; or of those that are `here`.
Flow* Turnstile::next(Time now, bool here) {
  auto* flow = root_.get();
  while (!flow->below_.empty()) {
    Flow* first = nullptr;
    for (auto* each : flow->below_) {
      if ((here ? each->waiting_ > 0 : active(*each, now)) &&
          (first == nullptr || each->tag_ < first->tag_ ||
           (each->tag_ == first->tag_ && each->waiting_ > 0 && first->waiting_ == 0))) {
        first = each;
      }
    }
    if (first == nullptr) {
      return nullptr;
    }
    flow = first;
  }
  return flow == root_.get() ? nullptr : flow;
}

// Gives out the turns there are. When to look again, if one is kept for somebody who is not here.
Time Turnstile::dispatch(Time now) {
  if (kept_for_ != nullptr && now >= back_at(*kept_for_)) {
    auto& late = *std::exchange(kept_for_, nullptr);
    late.gap_ = 0;
    late.missed_ = std::min<int64_t>(late.missed_ + 1, most_missed);
    late.skipped_ = int64_t{1} << late.missed_;
  }
  while (running_ < lanes_ && !waiting_.empty()) {
    auto* due = next(now, false);
    if (due != nullptr && due->waiting_ == 0) {
      auto* other = next(now, true);
      if (const auto until = keep_for(*due, other); until > now) {
        return until;
      }
      due = other;
    }
    if (due == nullptr) {
      return Time::max();
    }
    const auto its = std::find_if(waiting_.begin(), waiting_.end(), [due](const Ticket* ticket) {
      return std::find(ticket->flows.begin(), ticket->flows.end(), due) != ticket->flows.end();
    });
    auto* ticket = *its;
    waiting_.erase(its);
    ++running_;
    grant(*ticket, *due);
    ticket->called.notify_one();
  }
  return Time::max();
}

// The device waits no longer than a turn takes: its own, or the one that it would have to sit out.
Time Turnstile::keep_for(Flow& flow, const Flow* other) {
  const auto until = back_at(flow);
  if (other != nullptr && until - flow.left_ > as_duration(std::max(flow.usual_, other->usual_)) + slack) {
    return Time::min();
  }
  kept_for_ = &flow;
  return until;
}

void Turnstile::grant(Ticket& ticket, Flow& winner) {
  for (auto* flow = &winner; flow->above_ != nullptr; flow = flow->above_) {
    flow->above_->clock_ = std::max(flow->above_->clock_, flow->tag_);
  }
  for (auto* leaf : ticket.flows) {
    begin(*leaf);
  }
  ticket.winner = &winner;
}

Turn::Turn(Flow* flow) : flow_(flow) {
  if (flow_ != nullptr) {
    Ticket ticket;
    ticket.flows.push_back(flow_);
    flow_->turnstile().enter(ticket);
    start_ = Clock::now();
  }
}

Turn::~Turn() {
  if (flow_ != nullptr) {
    flow_->turnstile().leave({flow_}, in_seconds(Clock::now() - start_));
  }
}

}  // namespace genie_local
