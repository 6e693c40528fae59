// DPDK's environment (EAL), once in a process, on a thread of its own: `rte_eal_init` pins the thread that calls it.
#pragma once

#include <functional>
#include <string>
#include <vector>

struct rte_mempool;

namespace genie::dpdk {

constexpr unsigned frame_headers = 42;  // Ethernet, IPv4, UDP

// Throws std::runtime_error with DPDK's own words. After a failure it can be tried again with other arguments; once it
// has succeeded, further calls do nothing.
void start_eal(const std::vector<std::string>& arguments);

// Run on EAL's thread, and wait for it; exceptions come through.
void on_eal(const std::function<void()>& job);

// Buffers for whole frames; the same for all ports.
rte_mempool* frame_pool();
unsigned frame_room();  // bytes of a frame, at most

}  // namespace genie::dpdk
