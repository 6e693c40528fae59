// What is around a packet on its way: Ethernet, IPv4, UDP; and ARP, which says who has an address.
#pragma once

#include <array>
#include <deque>
#include <optional>
#include <set>
#include <unordered_map>

#include "../protocol/endpoint.h"

namespace genie::dpdk {

using Mac = std::array<std::uint8_t, 6>;

constexpr unsigned frame_headers = 42;  // Ethernet, IPv4, UDP
constexpr std::size_t arp_frame = 42;

struct Addressing {  // of one's own; in the host's byte order
    std::uint32_t ip = 0;
    std::uint8_t prefix = 32;  // bits of the address that all on this network share
    std::uint32_t gateway = 0;  // to other networks; 0: there is none
    bool asks = true;  // by ARP, who has an address; else the kernel does, which has the same one
};

// A path is, from the highest bits: the peer's IPv4 address, its UDP port, and one's own. Between two processes that
// nobody else can come between there are no addresses, and the path is 0.
class Link {
  public:
    Link() = default;
    Link(const Addressing& own, const Mac& mac) : own_(own), mac_(mac) {}

    void hold(std::uint16_t port) { ports_.insert(port); }  // UDP: what comes there is ours
    void release(std::uint16_t port) { ports_.erase(port); }

    struct Came {
        protocol::Path path;
        protocol::Bytes packet;
    };
    void learn(std::uint32_t ip, const Mac& mac);  // who has an address, which the kernel knows

    // Our packet in a frame, if there is one for us. ARP is answered, and learnt from. `behind`: bytes of the frame that
    // lie elsewhere, and are not looked at.
    std::optional<Came> take(protocol::Bytes frame, protocol::Time now, std::size_t behind = 0);
    // Writes the headers for so much payload. False where nobody knows yet where the peer is: ARP asks, and the packet
    // is as if lost.
    bool wrap(std::byte* to, protocol::Path path, std::size_t payload, protocol::Time now);
    // The next frame of ARP to be sent.
    bool next_arp(std::array<std::byte, arp_frame>& frame);

  private:
    struct Neighbour {
        Mac mac{};
        bool known = false;
        protocol::Time asked = 0, heard = 0;
    };

    const Mac* next_hop(std::uint32_t ip, protocol::Time now);
    std::uint32_t hop_to(std::uint32_t ip) const;  // 0: there is no way
    void note_sender(std::uint32_t ip, const Mac& mac, protocol::Time now);
    void ask(std::uint32_t ip, Neighbour& neighbour, protocol::Time now);
    void heard_arp(protocol::Bytes frame, protocol::Time now);
    void put_arp(std::uint16_t what, const Mac& to, std::uint32_t ip);

    std::optional<Addressing> own_;
    Mac mac_{2};  // locally administered
    std::set<std::uint16_t> ports_;
    std::unordered_map<std::uint32_t, Neighbour> neighbours_;
    std::deque<std::array<std::byte, arp_frame>> arp_;
};

}  // namespace genie::dpdk
