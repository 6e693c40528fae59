// How long a round trip takes, and how much may be on its way.
#pragma once

#include <algorithm>
#include <cstddef>

#include "header.h"

namespace genie::protocol {

// The estimator of RFC 9002, section 5 (that of RFC 6298, with the peer's delay taken out).
class RoundTrip {
  public:
    void sample(Time measured, Time peer_delay) {
        measured = std::max<Time>(measured, 1);
        least_ = known_ ? std::min(least_, measured) : measured;
        latest_ = measured;
        if (measured - peer_delay >= least_) measured -= peer_delay;
        if (!known_) {
            known_ = true;
            smooth_ = measured;
            deviation_ = measured / 2;
            return;
        }
        deviation_ += (std::abs(smooth_ - measured) - deviation_) / 4;
        smooth_ += (measured - smooth_) / 8;
    }

    bool known() const { return known_; }
    Time least() const { return least_; }
    Time latest() const { return latest_; }
    Time smooth() const { return smooth_; }
    // RFC 9002, 6.1.2: 9/8 of a round trip, at least the timers' grain.
    Time reordering() const { return std::max(std::max(smooth_, latest_) / 8 * 9, 100 * microsecond); }
    Time probe(Time peer_delay) const { return 2 * smooth_ + peer_delay + 100 * microsecond; }  // RFC 8985, 7.2
    Time timeout(Time least, Time most) const { return std::clamp(smooth_ + 4 * deviation_, least, most); }

  private:
    bool known_ = false;
    Time least_ = 0, latest_ = 0, smooth_ = 50 * millisecond, deviation_ = 25 * millisecond;
};

// Swift (Kumar et al., SIGCOMM 2020, algorithm 1): the window grows while round trips are near the target, and shrinks
// in proportion to the excess, at most once a round trip. The target is the shortest round trip seen and an allowance
// for queues; until it is first exceeded, or something is lost, the window doubles each round trip.
class Window {
  public:
    Window(std::size_t mss, Time allowance) : mss_(static_cast<double>(mss)), allowance_(allowance) {
        window_ = first_ * mss_;
    }

    std::size_t bytes() const { return static_cast<std::size_t>(window_); }

    void acked(std::size_t bytes, const RoundTrip& trip, Time now, std::size_t flying) {
        const double delay = static_cast<double>(trip.latest());
        const double target = static_cast<double>(trip.least() + allowance_);
        if (delay < target) {
            const bool used = static_cast<double>(flying + bytes) * 2 >= window_;  // else it says nothing of the path
            if (!used) return;
            const double grown = static_cast<double>(bytes);
            window_ += starting_ ? grown : additive_ * mss_ * grown / window_;
            window_ = std::min(window_, most_);
        } else {
            starting_ = false;
            if (may_shrink(trip, now)) shrink(std::max(1 - beta_ * (delay - target) / delay, 1 - deepest_), now);
        }
    }

    void lost(const RoundTrip& trip, Time now) {
        starting_ = false;
        if (may_shrink(trip, now)) shrink(1 - deepest_, now);
    }

    void timed_out(Time now) {
        starting_ = false;
        window_ = least_ * mss_;
        shrunk_ = now;
    }

  private:
    bool may_shrink(const RoundTrip& trip, Time now) const { return now - shrunk_ >= trip.smooth(); }
    void shrink(double factor, Time now) {
        window_ = std::max(window_ * factor, least_ * mss_);
        shrunk_ = now;
    }

    static constexpr double additive_ = 4;  // packets a round trip
    static constexpr double beta_ = 0.8, deepest_ = 0.5;  // the paper's
    static constexpr double first_ = 32, least_ = 4;  // packets
    static constexpr double most_ = 64 << 20;
    double mss_;
    double window_ = 0;
    Time allowance_;
    Time shrunk_ = 0;
    bool starting_ = true;
};

}  // namespace genie::protocol
