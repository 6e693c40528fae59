// DPDK's side of a device's memory: what of it ports may use, and the buffers in it that packets come into.
#pragma once

#include <memory>

#include "gpudev.h"
#include "registrations.h"

struct rte_eth_dev_info;
struct rte_eth_rxconf;
struct rte_mbuf;
struct rte_mempool;

namespace genie::gpumem {

Registrations& registrations();  // the process's, since DPDK's are

inline Range range_of(const std::byte* at, std::size_t bytes) { return {reinterpret_cast<std::uintptr_t>(at), bytes}; }

// A device's memory as receive buffers for the payloads of packets, whose headers stay in the host's.
class Payloads {
  public:
    // `head`: bytes of headers of every packet. `room`: bytes of payload in one, at most. `count`: of packets.
    Payloads(std::shared_ptr<GpuDevice> device, int port, unsigned head, unsigned room, unsigned count);
    ~Payloads();
    Payloads(const Payloads&) = delete;
    Payloads& operator=(const Payloads&) = delete;

    // Whether the NIC can put the head of a packet into one buffer and the rest into another, of another pool; and what
    // of its abilities that takes.
    static bool can_split(const rte_eth_dev_info& can);
    static std::uint64_t offloads();
    // Asks for it: `wanted` and what it refers to hold as long as this.
    void configure(rte_eth_rxconf& wanted, rte_mempool* heads);
    bool holds(const rte_mbuf* piece) const;
    // What such a NIC does, by the CPU: for tests of what comes after. The frame as it was, if it is too short or no
    // buffer is free.
    rte_mbuf* split(rte_mbuf* frame);
    unsigned head() const { return head_; }
    GpuDevice& device() const { return memory_->device(); }

  private:
    struct Segments;

    std::shared_ptr<Allocation> memory_;
    std::optional<Registrations::Lease> lease_;
    std::unique_ptr<Segments> segments_;
    unsigned head_;
    rte_mempool* pool_ = nullptr;
};

}  // namespace genie::gpumem
