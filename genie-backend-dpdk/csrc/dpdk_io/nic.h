// What a NIC is asked for, decided by what it says it can do; and which packets come to us where the kernel keeps it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "../protocol/endpoint.h"

struct rte_eth_dev_info;
struct rte_flow;

namespace genie::dpdk {

struct Nic {  // as opposed to a virtual device that only this transport knows
    std::string bus = "pci";
    std::uint16_t mtu = 1500;
    bool shared = false;  // the kernel keeps it, and gets what no rule of ours names
    bool asks = true;  // ARP is ours; else the kernel's
    protocol::Time link_wait = 10 * protocol::second;
};

struct Plan {
    std::uint64_t receiving = 0, sending = 0;  // offloads of the whole port
    bool segments = false;  // it sends chains of buffers
    bool splits = false;  // headers and payload of packets go to two pools
    std::string problem;  // why it can't be; "" where it can
};

// Of what the device says of itself. `mtu`: 0 leaves the device's. `split`: payloads are wanted in memory of another.
Plan plan(const rte_eth_dev_info& can, std::uint16_t mtu, bool split);

// The rules by which a NIC that the kernel keeps gives us our packets. DPDK's functions, as device.h: one thread at once.
class Steering {
  public:
    // Before the port is configured. Throws std::runtime_error where it can't be: all of the host's packets would be ours.
    void isolate(std::uint16_t port);
    void take_arp();  // and nobody else does, from then on
    void take_udp(std::uint32_t ip, std::uint16_t port);
    void leave_udp(std::uint16_t port);
    void leave_all() noexcept;

  private:
    std::uint16_t port_ = 0;
    bool isolated_ = false;
    rte_flow* arp_ = nullptr;
    std::map<std::uint16_t, rte_flow*> udp_;
};

// Waits until the port has a link. Throws std::runtime_error where it has none by then.
void wait_for_link(std::uint16_t port, protocol::Time patience);

// Why the device was not made, by the error of DPDK's that says so.
std::string attach_failure(int error);

}  // namespace genie::dpdk
