// A set of half-open ranges of 64-bit numbers.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>

namespace genie::protocol {

class Ranges {
  public:
    using Map = std::map<std::uint64_t, std::uint64_t>;  // first → past the last; neither touching nor empty

    bool contains(std::uint64_t number) const {
        auto after = map_.upper_bound(number);
        return after != map_.begin() && number < std::prev(after)->second;
    }

    void add(std::uint64_t first, std::uint64_t end) {
        if (first >= end) return;
        auto at = map_.upper_bound(first);
        if (at != map_.begin() && std::prev(at)->second >= first) {
            --at;
            if (at->second >= end) return;
            at->second = end;
        } else {
            at = map_.emplace_hint(at, first, end);
        }
        for (auto next = std::next(at); next != map_.end() && next->first <= at->second; next = map_.erase(next))
            if (next->second > at->second) at->second = next->second;
    }

    // Calls `each(first, end)` for every part of [first, end) that is not in the set.
    template <class Each>
    void gaps(std::uint64_t first, std::uint64_t end, Each each) const {
        auto at = map_.upper_bound(first);
        if (at != map_.begin() && std::prev(at)->second > first) first = std::prev(at)->second;
        for (; first < end && at != map_.end() && at->first < end; ++at) {
            if (first < at->first) each(first, at->first);
            first = at->second;
        }
        if (first < end) each(first, end);
    }

    // Calls `each(first, end)` for every part of [first, end) that is in the set.
    template <class Each>
    void within(std::uint64_t first, std::uint64_t end, Each each) const {
        auto at = map_.upper_bound(first);
        if (at != map_.begin()) --at;
        for (; at != map_.end() && at->first < end; ++at)
            if (at->second > first) each(std::max(first, at->first), std::min(end, at->second));
    }

    void drop_lowest() { map_.erase(map_.begin()); }
    void clear() { map_.clear(); }
    const Map& map() const { return map_; }
    std::size_t size() const { return map_.size(); }

  private:
    Map map_;
};

}  // namespace genie::protocol
