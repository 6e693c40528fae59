// Which memory DPDK and its devices know, so that packets may lie in it. Pure bookkeeping: who does it is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "memory.h"

namespace genie::gpumem {

struct Range {
    std::uintptr_t start = 0;
    std::size_t bytes = 0;

    std::uintptr_t end() const { return start + bytes; }
    bool overlaps(const Range& other) const { return start < other.end() && other.start < end(); }
    bool contains(const Range& other) const { return start <= other.start && other.end() <= end(); }
    bool operator==(const Range&) const = default;
};

class Registrar {  // each may throw, and has then done nothing
  public:
    virtual ~Registrar() = default;
    virtual void add(const Range& range) = 0;  // DPDK may see it
    virtual void remove(const Range& range) noexcept = 0;
    virtual void map(int port, const Range& range) = 0;  // the port's device may read and write it by itself
    virtual void unmap(int port, const Range& range) noexcept = 0;
};

// A registration is kept while someone leases it and, since it is dear, as long afterwards as there is room. Regions
// never overlap, since DPDK registers nothing twice: what overlaps one that nobody leases is registered together with
// it, and what overlaps one that is leased has the rest registered beside it.
class Registrations {
    struct Region;

  public:
    struct Limits {
        std::size_t regions = 64;
        std::size_t bytes = SIZE_MAX;
    };
    struct Counters {
        std::size_t regions = 0, bytes = 0, leased = 0;
        std::uint64_t made = 0, found = 0, evicted = 0;
    };

    Registrations(Registrar& registrar, Limits limits) : registrar_(registrar), limits_(limits) {}
    ~Registrations();
    Registrations(const Registrations&) = delete;
    Registrations& operator=(const Registrations&) = delete;

    class Lease {  // ends with its object, before the cache's
      public:
        Lease(Lease&& other) noexcept : cache_(other.cache_), held_(std::exchange(other.held_, {})) {}
        Lease& operator=(Lease&& other) noexcept {
            std::swap(cache_, other.cache_);
            std::swap(held_, other.held_);
            return *this;
        }
        ~Lease();
        // Whether it lies within one registration: a device reads a packet's piece by one.
        bool whole(const Range& range) const;

      private:
        friend Registrations;
        Lease(Registrations& cache, std::vector<Region*> held) : cache_(&cache), held_(std::move(held)) {}
        Registrations* cache_;
        std::vector<Region*> held_;
    };

    // Nothing where there is no room: all that is registered is leased. Throws what the registrar throws.
    std::optional<Lease> acquire(int port, const Range& range);
    // The memory is about to go: nobody finds its registrations again, and those that are leased end with their leases.
    void forget(const Range& range);
    void drop_port(int port);  // its device is about to go
    Counters counters() const;

  private:
    struct Region {
        Range range;
        unsigned leases = 0;
        bool dead = false;  // it ends with its last lease
        std::set<int> ports;
        std::uint64_t used = 0;
    };
    using Regions = std::list<Region>;

    void end(Regions::iterator at);
    bool make_room(std::size_t regions, std::size_t bytes);
    Region& add(const Range& range);
    void release(const std::vector<Region*>& held);

    Registrar& registrar_;
    const Limits limits_;
    mutable std::mutex mutex_;
    Regions regions_;
    std::size_t bytes_ = 0;
    std::uint64_t clock_ = 0, made_ = 0, found_ = 0, evicted_ = 0;
};

}  // namespace genie::gpumem
