#include "../registrations.h"

#include <algorithm>
#include <set>

#include "check.h"

namespace genie::gpumem::check {

namespace {

// As strict as DPDK.
class Strict final : public Registrar {
  public:
    void add(const Range& range) override {
        if (failing) throw std::runtime_error("DPDK takes no such memory");
        expect(range.start % page == 0 && range.bytes % page == 0 && range.bytes, "whole pages are registered");
        for (const auto& each : known) expect(!each.overlaps(range), "nothing is registered twice");
        known.push_back(range);
    }
    void remove(const Range& range) noexcept override {
        sound &= std::erase(known, range) == 1;
        for (const auto& [port, each] : mapped) sound &= !(each == range);
    }
    void map(int port, const Range& range) override {
        if (failing_map) throw std::runtime_error("the port's device can't reach such memory");
        expect(std::find(known.begin(), known.end(), range) != known.end(), "what is mapped is registered");
        expect(!reaches(port, range), "nothing is mapped twice");
        mapped.push_back({port, range});
    }
    void unmap(int port, const Range& range) noexcept override {
        sound &= std::erase_if(mapped, [&](const auto& each) { return each.first == port && each.second == range; }) == 1;
    }
    bool reaches(int port, const Range& range) const {
        return std::any_of(mapped.begin(), mapped.end(),
                           [&](const auto& each) { return each.first == port && each.second == range; });
    }
    // Whether every byte of it is in memory that the port's device reaches.
    bool covers(int port, const Range& range) const {
        std::uintptr_t from = range.start;
        for (bool on = true; on && from < range.end();) {
            on = false;
            for (const auto& [each_port, each] : mapped)
                if (each_port == port && each.start <= from && from < each.end()) {
                    from = each.end();
                    on = true;
                }
        }
        return from >= range.end();
    }

    std::vector<Range> known;
    std::vector<std::pair<int, Range>> mapped;
    bool failing = false, failing_map = false, sound = true;
};

Range pages(std::size_t first, std::size_t count) { return {(1000 + first) * page, count * page}; }

void one_by_one() {
    Strict strict;
    Registrations cache(strict, {.regions = 3, .bytes = 100 * page});
    const Range bytes{1000 * page + 5, 10};
    {
        const auto lease = cache.acquire(0, bytes);
        expect(lease && lease->whole(bytes) && !lease->whole(pages(0, 2)), "a page is registered");
        const auto again = cache.acquire(0, bytes);
        expect(again && strict.known.size() == 1 && cache.counters().found == 1, "what is registered is found");
        const auto elsewhere = cache.acquire(1, bytes);
        expect(strict.reaches(0, pages(0, 1)) && strict.reaches(1, pages(0, 1)), "each port's device reaches it");
        // One that overlaps what is leased: the rest is registered beside it.
        const auto wider = cache.acquire(0, pages(0, 3));
        expect(wider && strict.known.size() == 2 && strict.covers(0, pages(0, 3)), "the rest is registered");
        expect(!wider->whole(pages(0, 3)) && wider->whole(pages(1, 2)), "and is a region of its own");
        expect(!cache.acquire(0, pages(10, 101)), "more than fits is not registered");
        const auto third = cache.acquire(0, pages(20, 1));
        expect(!cache.acquire(0, pages(30, 1)), "nor is one more than fits, while all are leased");
    }
    // Nobody leases any: what overlaps becomes one.
    expect(strict.known.size() == 3 && cache.counters().leased == 0, "what was leased stays registered");
    {
        const auto whole = cache.acquire(0, pages(0, 3));
        expect(whole && whole->whole(pages(0, 3)) && strict.known.size() == 2, "what overlaps becomes one");
        const auto other = cache.acquire(0, pages(40, 1));
        const auto more = cache.acquire(0, pages(50, 1));
        expect(other && more && cache.counters().evicted == 1 && !strict.covers(0, pages(20, 1)),
               "what was not used for longest goes");
        cache.forget(pages(0, 1));
        expect(strict.covers(0, pages(0, 3)), "what is leased stays until its lease ends");
        expect(!cache.acquire(0, pages(1, 1)), "but nobody finds it any more");
        cache.drop_port(0);
        expect(strict.mapped.empty(), "a port that goes is reached by nothing");
    }
    expect(!strict.covers(0, pages(0, 3)) && strict.known.size() == 2, "with its lease it is gone");
    cache.forget(pages(50, 1));
    expect(strict.known.size() == 1, "what nobody leases goes with its memory");
    strict.failing = true;
    refused<std::runtime_error>([&] { cache.acquire(0, pages(60, 1)); }, "what DPDK does not take");
    strict.failing = false;
    strict.failing_map = true;
    refused<std::runtime_error>([&] { cache.acquire(2, pages(60, 1)); }, "what the device does not reach");
    strict.failing_map = false;
    expect(cache.counters().leased == 0 && cache.acquire(2, pages(60, 1)), "and it works afterwards");
    expect(strict.sound, "what is undone was done");
}

void at_random(unsigned seed) {
    std::mt19937 random(seed);
    const auto below = [&](unsigned most) { return static_cast<std::size_t>(random() % most); };
    Strict strict;
    const Registrations::Limits limits{.regions = 8, .bytes = 40 * page};
    {
        Registrations cache(strict, limits);
        struct Held {
            int port;
            Range range;
            Registrations::Lease lease;
        };
        std::vector<Held> held;
        for (int step = 0; step < 3000; ++step) {
            strict.failing = below(50) == 0;
            strict.failing_map = below(50) == 0;
            const int port = static_cast<int>(below(3));
            const Range range{1000 * page + below(64 * page), 1 + below(12 * page)};
            if (below(10) == 0) {
                cache.forget(range);
            } else if (below(2) && !held.empty()) {
                std::swap(held[below(static_cast<unsigned>(held.size()))], held.back());
                held.pop_back();
            } else {
                try {
                    if (auto lease = cache.acquire(port, range)) held.push_back({port, range, std::move(*lease)});
                } catch (const Failed&) {
                    throw;
                } catch (const std::runtime_error&) {
                }
            }
            for (const auto& each : held) expect(strict.covers(each.port, each.range), "what is leased is reached");
            const auto counted = cache.counters();
            expect(counted.regions <= limits.regions && counted.bytes <= limits.bytes, "there is never more than fits");
            expect(counted.regions == strict.known.size(), "the cache knows what is registered");
        }
    }
    expect(strict.known.empty() && strict.mapped.empty() && strict.sound, "all is undone in the end");
}

}  // namespace

void registrations() {
    one_by_one();
    for (unsigned seed = 0; seed < 20; ++seed) at_random(seed);
    std::printf("{\"check\": \"registrations\", \"steps\": 60000}\n");
}

}  // namespace genie::gpumem::check
