#include "registrations.h"

#include <algorithm>

namespace genie::gpumem {

namespace {

Range in_pages(const Range& range) {
    const std::uintptr_t start = range.start / page * page;
    return {start, whole_pages(range.end() - start)};
}

}  // namespace

Registrations::~Registrations() {
    while (!regions_.empty()) end(regions_.begin());
}

void Registrations::end(Regions::iterator at) {
    for (int port : at->ports) registrar_.unmap(port, at->range);
    registrar_.remove(at->range);
    bytes_ -= at->range.bytes;
    regions_.erase(at);
}

bool Registrations::make_room(std::size_t regions, std::size_t bytes) {
    while (regions_.size() + regions > limits_.regions || bytes > limits_.bytes || bytes_ > limits_.bytes - bytes) {
        auto oldest = regions_.end();
        for (auto at = regions_.begin(); at != regions_.end(); ++at)
            if (!at->leases && (oldest == regions_.end() || at->used < oldest->used)) oldest = at;
        if (oldest == regions_.end()) return false;
        end(oldest);
        ++evicted_;
    }
    return true;
}

Registrations::Region& Registrations::add(const Range& range) {
    registrar_.add(range);
    regions_.emplace_back().range = range;
    bytes_ += range.bytes;
    ++made_;
    return regions_.back();
}

std::optional<Registrations::Lease> Registrations::acquire(int port, const Range& wanted) {
    std::lock_guard lock(mutex_);
    Range range = in_pages(wanted);
    std::vector<Region*> held;
    const auto overlapping = [&] {
        std::vector<Regions::iterator> found;
        for (auto at = regions_.begin(); at != regions_.end(); ++at)
            if (at->range.overlaps(range)) found.push_back(at);
        return found;
    };
    const auto known = overlapping();
    if (std::any_of(known.begin(), known.end(), [](const auto& each) { return each->dead; })) return std::nullopt;
    if (known.size() == 1 && known[0]->range.contains(range)) {
        held = {&*known[0]};
        ++found_;
    } else {
        // What nobody leases makes way for one region of both, which may then overlap more of them.
        for (bool merged = true; merged;) {
            merged = false;
            for (auto at : overlapping()) {
                if (at->leases) continue;
                const std::uintptr_t start = std::min(range.start, at->range.start);
                range = {start, std::max(range.end(), at->range.end()) - start};
                end(at);
                merged = true;
            }
        }
        std::vector<Range> gaps;
        std::vector<Regions::iterator> stay = overlapping();
        std::sort(stay.begin(), stay.end(), [](auto one, auto other) { return one->range.start < other->range.start; });
        std::uintptr_t from = range.start;
        std::size_t bytes = 0;
        const auto gap_until = [&](std::uintptr_t until) {
            if (until <= from) return;
            gaps.push_back({from, until - from});
            bytes += until - from;
        };
        for (auto each : stay) {
            gap_until(each->range.start);
            from = std::max(from, each->range.end());
            held.push_back(&*each);
        }
        gap_until(range.end());
        if (!make_room(gaps.size(), bytes)) return std::nullopt;
        for (const Range& gap : gaps) held.push_back(&add(gap));
    }
    for (Region* each : held) {
        if (each->ports.contains(port)) continue;
        registrar_.map(port, each->range);
        each->ports.insert(port);
    }
    for (Region* each : held) {
        ++each->leases;
        each->used = ++clock_;
    }
    return Lease(*this, std::move(held));
}

void Registrations::release(const std::vector<Region*>& held) {
    std::lock_guard lock(mutex_);
    for (Region* each : held) {
        if (--each->leases || !each->dead) continue;
        end(std::find_if(regions_.begin(), regions_.end(), [&](const Region& other) { return &other == each; }));
    }
}

Registrations::Lease::~Lease() {
    if (!held_.empty()) cache_->release(held_);
}

bool Registrations::Lease::whole(const Range& range) const {
    return std::any_of(held_.begin(), held_.end(),
                       [&](const Region* each) { return each->range.contains(range); });
}

void Registrations::forget(const Range& range) {
    std::lock_guard lock(mutex_);
    for (auto at = regions_.begin(); at != regions_.end();) {
        const auto each = at++;
        if (!each->range.overlaps(range)) continue;
        each->dead = true;
        if (!each->leases) end(each);
    }
}

void Registrations::drop_port(int port) {
    std::lock_guard lock(mutex_);
    for (Region& each : regions_)
        if (each.ports.erase(port)) registrar_.unmap(port, each.range);
}

Registrations::Counters Registrations::counters() const {
    std::lock_guard lock(mutex_);
    Counters counted{.regions = regions_.size(), .bytes = bytes_, .made = made_, .found = found_, .evicted = evicted_};
    for (const Region& each : regions_) counted.leased += each.leases != 0;
    return counted;
}

}  // namespace genie::gpumem
