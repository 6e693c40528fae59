// One DPDK port: frames in and out. Its packets travel in UDP over IPv4 over Ethernet.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "../protocol/connection.h"

struct rte_mbuf;

namespace genie::dpdk {

class Device {
  public:
    // A virtual device of DPDK's ("net_memif0") with its arguments. Throws std::runtime_error with DPDK's words.
    Device(std::string name, const std::string& arguments);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    bool up() const;
    // Calls `each` with every packet that has come, at most 32; how many there were.
    unsigned receive(const std::function<void(protocol::Bytes)>& each);
    // Takes the packet; false when no more should be given before `flush` says so.
    bool send(const protocol::Outgoing& out);
    bool flush();  // false when the device has no room for all of it now
    void discard();  // what it has no room for: memory it would read from must not be needed any more
    bool waiting() const { return count_ != 0; }

  private:
    static constexpr unsigned burst = 32;

    rte_mbuf* linear(const protocol::Outgoing& out) const;
    rte_mbuf* attached(const protocol::Outgoing& out) const;

    std::string name_;
    std::uint16_t port_ = 0;
    bool segments_ = false;  // it sends chains of buffers
    rte_mbuf* frames_[burst];
    unsigned count_ = 0;
};

}  // namespace genie::dpdk
