// A device's memory: what its sessions have together, who has it, and what leaves when more is wanted.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "swap.h"

namespace genie_local {

class Session;
struct SharedBytes;

// When a value was used last. `inflation` is the device's at that time: GreedyDual-Size's memory of how dear what left
// since then was (Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", 1997).
struct Use {
  uint32_t run = 0;  // of the session
  uint32_t when = 0;  // ms, of a steady clock
  double inflation = 0;
};

Use later(const Use& one, const Use& other);

// Milliseconds of a steady clock, since the first time anyone asked; wraps after 49 days.
uint32_t now_ms();

// Bytes that moved, and the seconds that took.
struct Traffic {
  std::atomic<int64_t> count{0};
  std::atomic<int64_t> bytes{0};
  std::atomic<int64_t> nanoseconds{0};

  void add(size_t size, std::chrono::steady_clock::duration took);
  // Seconds per byte, as seen; `unseen` before anything was.
  double rate(double unseen) const;
};

// Bytes that left, and whether a session was passed over because it was at work: a moment later it may not be.
struct Gone {
  int64_t bytes = 0;
  bool passed_over = false;

  Gone& operator+=(const Gone& more) {
    bytes += more.bytes;
    passed_over |= more.passed_over;
    return *this;
  }
};

// What several sessions may use together: each asks before, and counts here what it holds. Between asking and holding
// another may be quicker; the step that then holds too much fails. Thread-safe.
class Budget {
 public:
  explicit Budget(int64_t bytes, SwapPtr swap = nullptr) : limit(bytes), swap(std::move(swap)) {
    if (this->swap) {
      this->swap->serve(bytes);
    }
  }

  const int64_t limit;
  const SwapPtr swap;  // null: what is nowhere else stays
  std::atomic<int64_t> live{0};
  std::atomic<int64_t> peak{0};
  std::atomic<int64_t> contents{0};  // of `live`: weights by content, counted once however many sessions have them
  Traffic evicted;  // weights that left and can be had again
  Traffic restored;  // … and that came back
  Traffic swapped_out;
  Traffic swapped_in;
  std::atomic<double> inflation{0};

  void change(int64_t bytes);
  void enter(Session* session);
  void leave(Session* session);
  void name(Session& session, std::string label, std::string tenant);
  void keep(const std::shared_ptr<SharedBytes>& bytes);

  // Lets values leave, the cheapest to bring back first, until `bytes` are free. Of sessions at work nothing leaves,
  // except what `own`, whose thread asks, does not use at present. With `alone` only `own`'s.
  Gone reclaim(int64_t bytes, Session* own, bool alone = false);
  // The same for what nobody used for so long and is nowhere else.
  int64_t put_idle_out(double seconds);

  // "session a has 3.0 GB (2.0 GB weights, 1.0 GB state), …": the largest first; of other tenants only the sum.
  std::string holders(const Session* own);

 private:
  struct Pass;
  Gone pass(int64_t bytes, Session* own, bool alone, double idle_seconds);

  std::mutex mutex_;
  std::vector<Session*> sessions_;
  std::vector<std::weak_ptr<SharedBytes>> contents_;
};
using BudgetPtr = std::shared_ptr<Budget>;

}  // namespace genie_local
