// DPDK's environment (EAL), once in a process, on a thread of its own: `rte_eal_init` pins the thread that calls it.
#pragma once

#include <functional>
#include <string>
#include <vector>

struct rte_mempool;

namespace genie::dpdk {

// Throws std::runtime_error with DPDK's own words. After arguments that EAL refuses it can be tried again with others,
// after other failures no more; once it has succeeded, further calls do nothing.
void start_eal(const std::vector<std::string>& arguments);

// Whether this process was forked from one in which EAL's thread runs: it has the memory, and not the threads.
bool forked();

// Run where DPDK's drivers hear of their devices, on its interrupt thread, and wait for it; exceptions come through. A
// driver may not hear of a device while that is made or removed (memif's would use what is freed).
void on_eal(const std::function<void()>& job);

// The same on the thread that started EAL.
void on_main(const std::function<void()>& job);

// Done on EAL's own thread, in order with what `on_eal` is given, and not waited for.
void later(std::function<void()> job);

// From then on that thread does nothing any more: the process is about to end.
void park_eal();

// Buffers for whole frames; the same for all ports.
rte_mempool* frame_pool();
unsigned frames_in_use();
unsigned frame_room();  // bytes of a frame, at most

}  // namespace genie::dpdk
