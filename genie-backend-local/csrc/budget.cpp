#include "budget.h"

#include <algorithm>
#include <limits>
#include <set>
#include <unordered_map>
#include <utility>

#include "clean.h"
#include "session.h"

namespace genie_local {
namespace {

using Clock = std::chrono::steady_clock;

// What moving bytes is assumed to take before any were moved, and what every move takes besides (s).
constexpr double unseen = 2.5e-10;
constexpr double per_move = 2e-5;
constexpr size_t most_named = 5;  // sessions in a message

double seconds_since(uint32_t when, uint32_t now) {
  return static_cast<double>(now - when) / 1e3;  // right across the wrap
}

}  // namespace

Use later(const Use& one, const Use& other) {
  return static_cast<int32_t>(one.when - other.when) > 0 ? one : other;
}

uint32_t now_ms() {
  static const auto start = Clock::now();
  return static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count());
}

void Traffic::add(size_t size, Clock::duration took) {
  ++count;
  bytes += static_cast<int64_t>(size);
  nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(took).count();
}

double Traffic::rate(double unseen) const {
  const auto moved = bytes.load();
  return moved == 0 ? unseen : static_cast<double>(nanoseconds) / 1e9 / static_cast<double>(moved);
}

void Budget::change(int64_t bytes) {
  const auto now = live.fetch_add(bytes) + bytes;
  auto most = peak.load(std::memory_order_relaxed);
  while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
  }
}

void Budget::enter(Session* session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  sessions_.push_back(session);
}

void Budget::leave(Session* session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  sessions_.erase(std::remove(sessions_.begin(), sessions_.end(), session), sessions_.end());
}

void Budget::name(Session& session, std::string label, std::string tenant) {
  const std::lock_guard<std::mutex> lock(mutex_);
  session.label_ = std::move(label);
  session.tenant_ = std::move(tenant);
}

void Budget::keep(const SharedBytesPtr& bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  contents_.erase(
      std::remove_if(contents_.begin(), contents_.end(), [](const auto& weak) { return weak.expired(); }),
      contents_.end());
  contents_.push_back(bytes);
}

// One look at all that could leave. What it referred to is let go after the locks: that may need the interpreter.
struct Budget::Pass {
  struct Candidate {
    SharedBytesPtr bytes;  // null: one session's own, not shared so far
    std::vector<Leaving> at;
    Use use;
    size_t size = 0;
    bool has_source = false;
    double priority = 0;
  };
  std::vector<Candidate> candidates;
  std::vector<std::unique_lock<std::mutex>> locks;
  std::set<std::string> warnings;

  void add(const Leaving& leaving, std::unordered_map<SharedBytes*, size_t>& known) {
    auto bytes = shared_bytes(*leaving.storage);
    if (bytes) {
      const auto [found, fresh] = known.emplace(bytes.get(), candidates.size());
      if (!fresh) {
        auto& its = candidates[found->second];
        its.at.push_back(leaving);
        its.use = later(leaving.use, its.use);
        return;
      }
    }
    candidates.push_back({std::move(bytes), {leaving}, leaving.use, leaving.storage->nbytes()});
  }
};

Gone Budget::pass(int64_t bytes, Session* own, bool alone, double idle_seconds) {
  Gone gone;
  Pass all;
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unordered_map<SharedBytes*, size_t> known;
  std::vector<Leaving> leaving;
  for (auto* session : sessions_) {
    if (session != own) {
      if (alone) {
        continue;
      }
      if (session->working()) {
        gone.passed_over = true;
        continue;
      }
      std::unique_lock<std::mutex> its(session->lock_, std::try_to_lock);
      if (!its.owns_lock()) {
        gone.passed_over = true;
        continue;
      }
      all.locks.push_back(std::move(its));
    }
    leaving.clear();
    session->list_leaving(leaving);
    for (const auto& each : leaving) {
      all.add(each, known);
    }
  }
  if (!alone) {
    for (const auto& weak : contents_) {
      if (auto kept = weak.lock(); kept && known.find(kept.get()) == known.end()) {
        const auto size = kept->size;
        all.candidates.push_back({std::move(kept), {}, {}, size});
      }
    }
  }
  const auto again = restored.rate(unseen);
  const auto swapped = swapped_out.rate(unseen) + swapped_in.rate(unseen);
  const auto now = now_ms();
  for (auto& each : all.candidates) {
    if (each.bytes) {  // its lock may be held by who restores it: they wait for nobody here
      const std::lock_guard<std::mutex> its(each.bytes->lock);
      each.has_source = each.bytes->source.data != nullptr;
      each.use = each.at.empty() ? each.bytes->use : each.use;
    }
    const auto cost = (each.has_source ? again : swapped) + per_move / static_cast<double>(each.size);
    each.priority = each.use.inflation + cost;
  }
  std::sort(all.candidates.begin(), all.candidates.end(), [now](const auto& one, const auto& other) {
    return one.priority != other.priority ? one.priority < other.priority : now - one.use.when > now - other.use.when;
  });
  for (auto& each : all.candidates) {
    if (gone.bytes >= bytes) {
      break;
    }
    if (idle_seconds > 0 && (each.has_source || seconds_since(each.use.when, now) < idle_seconds)) {
      continue;
    }
    if (!each.bytes) {
      each.bytes = share(*each.at.front().storage);
    }
    std::vector<c10::StorageImpl*> storages;
    for (const auto& its : each.at) {
      storages.push_back(its.storage);
    }
    const CleanState clean(each.bytes->device, all.warnings);
    // A content that no session has is nobody's; it is dropped.
    const auto account = each.at.empty() ? nullptr : each.at.front().session->memory_.account();
    if (put_out(each.bytes, storages, *this, account)) {
      for (const auto& its : each.at) {
        if (!its.away) {
          its.session->memory_.went(*its.storage);
        }
      }
      gone.bytes += static_cast<int64_t>(each.size);
      if (each.priority > inflation) {
        inflation = each.priority;
      }
    }
  }
  all.locks.clear();  // before the mutex: a session that ends waits for that one, and is gone then
  return gone;
}

Gone Budget::reclaim(int64_t bytes, Session* own, bool alone) {
  return bytes > 0 ? pass(bytes, own, alone, 0) : Gone();
}

int64_t Budget::put_idle_out(double seconds) {
  return seconds > 0 ? pass(std::numeric_limits<int64_t>::max(), nullptr, false, seconds).bytes : 0;
}

std::string Budget::holders(const Session* own) {
  struct Row {
    int64_t bytes;
    std::string text;
  };
  const auto kinds_of = [](const Session& session) {
    std::string text;
    for (size_t kind = 0; kind < kinds; ++kind) {
      if (const auto bytes = session.memory_.live(static_cast<Kind>(kind)); bytes > 0) {
        text += (text.empty() ? "" : ", ") + bytes_text(bytes) + " " + name_of(static_cast<Kind>(kind));
      }
    }
    return text;
  };
  std::vector<Row> rows;
  int64_t others = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto* session : sessions_) {
      int64_t bytes = 0;
      for (size_t kind = 0; kind < kinds; ++kind) {
        bytes += session->memory_.live(static_cast<Kind>(kind));
      }
      if (bytes == 0) {
        continue;
      }
      if (session != own && session->tenant_ != own->tenant_) {
        others += bytes;
        continue;
      }
      const auto who = session == own ? std::string("this session") : "session " + session->label_;
      rows.push_back({bytes, who + " has " + bytes_text(bytes) + " (" + kinds_of(*session) + ")"});
    }
  }
  std::sort(rows.begin(), rows.end(), [](const Row& one, const Row& other) { return one.bytes > other.bytes; });
  std::string text;
  const auto say = [&text](const std::string& part) { text += (text.empty() ? "" : "; ") + part; };
  int64_t unnamed = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i < most_named) {
      say(rows[i].text);
    } else {
      unnamed += rows[i].bytes;
    }
  }
  if (unnamed > 0) {
    say("further sessions " + bytes_text(unnamed));
  }
  if (others > 0) {
    say("other tenants " + bytes_text(others));
  }
  if (swap) {
    say("swap: " + bytes_text(swap->used()) + " of " + bytes_text(swap->limit()));
  }
  return text.empty() ? "nothing else is held" : text;
}

}  // namespace genie_local
