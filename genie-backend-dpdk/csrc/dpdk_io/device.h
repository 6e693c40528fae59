// One DPDK port: frames in and out.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "../gpumem/ports.h"
#include "link.h"
#include "nic.h"

struct rte_mbuf;

namespace genie::dpdk {

// A virtual device that is only there, for as long as the process is. Throws as Device's constructor does.
void add_device(const std::string& name, const std::string& arguments);

// Where payloads may go besides the host's memory: into `memory`, by the NIC itself where it can split packets.
struct Gpu {
    std::shared_ptr<gpumem::GpuDevice> memory;
    bool split_here = false;  // where it can't, the CPU does as such a NIC would: for tests
};

class Device {
  public:
    using Each = std::function<void(protocol::Path, protocol::Bytes, const protocol::Elsewhere&)>;

    // A virtual device of DPDK's ("net_memif0") with its arguments, or a NIC ("0000:3b:00.0"). Throws
    // std::runtime_error with DPDK's words.
    Device(std::string name, const std::string& arguments, const std::optional<Addressing>& own, Gpu gpu,
           std::optional<Nic> nic = std::nullopt);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    bool up() const;
    // What comes to this UDP port is ours. Throws std::runtime_error where the device does not give it to us.
    void hold(std::uint16_t port);
    void release(std::uint16_t port);
    void learn(std::uint32_t ip, const Mac& mac) { link_.learn(ip, mac); }
    // Calls `each` with every packet that has come, at most 32; how many there were.
    unsigned receive(const Each& each, protocol::Time now);
    bool memory_failed() const { return memory_failed_; }  // something was not copied
    bool splits() const { return splits_; }
    int port() const { return port_; }
    // Takes the packet; false when no more should be given before `flush` says so.
    bool send(protocol::Path path, const protocol::Outgoing& out, protocol::Time now);
    bool flush();  // false when the device has no room for all of it now
    void discard();  // what it has no room for: memory it would read from must not be needed any more
    bool waiting() const { return count_ != 0; }

  private:
    static constexpr unsigned burst = 32;

    void make(const std::string& arguments, const std::optional<Addressing>& own);
    void at_home(const std::function<void()>& job) const;  // on the thread on which such a device is made and removed
    void find_port();
    void set_up();
    void set_mtu() const;
    void stop();
    void remove();
    void take(rte_mbuf* frame, const Each& each, protocol::Time now);
    void take_split(rte_mbuf* frame, const Each& each, protocol::Time now);
    void send_arp();
    rte_mbuf* linear(const std::byte* headers, const protocol::Outgoing& out) const;
    rte_mbuf* attached(const std::byte* headers, const protocol::Outgoing& out) const;

    std::string name_;
    std::uint16_t port_ = UINT16_MAX;  // until there is one
    std::optional<Nic> nic_;
    std::uint32_t ip_ = 0;
    Link link_;
    Steering steering_;
    bool segments_ = false;  // it sends chains of buffers
    bool reads_memory_ = false;  // by itself, and only what it was told of
    Gpu gpu_;
    std::unique_ptr<gpumem::Payloads> payloads_;
    bool splits_ = false;  // packets, into headers and payload
    bool memory_failed_ = false;
    rte_mbuf* frames_[burst];
    unsigned count_ = 0;
};

}  // namespace genie::dpdk
