#include "link.h"

#include <netinet/in.h>
#include <rte_arp.h>
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_udp.h>

#include <algorithm>
#include <cstring>

namespace genie::dpdk {

using protocol::Bytes;
using protocol::Path;
using protocol::Time;

namespace {

constexpr std::uint16_t udp_port = 0x47D7;  // where there are no addresses
constexpr Mac everybody = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
constexpr Time ask_again = 20 * protocol::millisecond;  // nobody has answered yet
constexpr Time stale = 30 * protocol::second;  // then it is asked again, and what is known serves meanwhile
constexpr Time ask_again_stale = protocol::second;
constexpr std::size_t most_neighbours = 4096;
constexpr std::size_t most_arp = 64;

static_assert(frame_headers == sizeof(rte_ether_hdr) + sizeof(rte_ipv4_hdr) + sizeof(rte_udp_hdr));
static_assert(arp_frame == sizeof(rte_ether_hdr) + sizeof(rte_arp_hdr));

void put_mac(void* to, const Mac& mac) { std::memcpy(to, mac.data(), mac.size()); }

Mac mac_of(const rte_ether_addr& from) {
    Mac mac;
    std::copy_n(from.addr_bytes, mac.size(), mac.begin());
    return mac;
}

}  // namespace

std::optional<Link::Came> Link::take(Bytes frame, Time now, std::size_t behind) {
    if (frame.size() < frame_headers) return std::nullopt;
    const auto* ethernet = reinterpret_cast<const rte_ether_hdr*>(frame.data());
    if (ethernet->ether_type == rte_cpu_to_be_16(RTE_ETHER_TYPE_ARP)) {
        heard_arp(frame, now);
        return std::nullopt;
    }
    const auto* ip = reinterpret_cast<const rte_ipv4_hdr*>(ethernet + 1);
    const auto* udp = reinterpret_cast<const rte_udp_hdr*>(ip + 1);
    const std::size_t length = rte_be_to_cpu_16(udp->dgram_len);
    const std::uint16_t fragment = rte_be_to_cpu_16(ip->fragment_offset);
    if (ethernet->ether_type != rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4) || ip->version_ihl != RTE_IPV4_VHL_DEF ||
        ip->next_proto_id != IPPROTO_UDP || (fragment & ~RTE_IPV4_HDR_DF_FLAG) ||
        length < sizeof *udp || length - sizeof *udp > frame.size() - frame_headers + behind)
        return std::nullopt;
    Path path = 0;
    const std::uint16_t port = rte_be_to_cpu_16(udp->dst_port);
    if (!own_) {
        if (port != udp_port) return std::nullopt;
    } else {
        // A device hears what is for others too: promiscuous ones, and the frames this host itself sends.
        if (mac_of(ethernet->dst_addr) != mac_ || ip->dst_addr != rte_cpu_to_be_32(own_->ip) ||
            !ports_.contains(port))
            return std::nullopt;
        if (!own_->asks) note_sender(rte_be_to_cpu_32(ip->src_addr), mac_of(ethernet->src_addr), now);
        path = Path{rte_be_to_cpu_32(ip->src_addr)} << 32 | std::uint32_t{rte_be_to_cpu_16(udp->src_port)} << 16 | port;
    }
    return Came{path, frame.subspan(frame_headers, std::min(length - sizeof *udp, frame.size() - frame_headers))};
}

bool Link::wrap(std::byte* to, Path path, std::size_t payload, Time now) {
    const Mac* peer = &everybody;
    std::uint32_t from_ip = RTE_IPV4(169, 254, 71, 215), to_ip = from_ip;  // for whoever looks on
    std::uint16_t from_port = udp_port, to_port = udp_port;
    if (own_) {
        to_ip = static_cast<std::uint32_t>(path >> 32);
        to_port = static_cast<std::uint16_t>(path >> 16);
        from_ip = own_->ip;
        from_port = static_cast<std::uint16_t>(path);
        peer = next_hop(to_ip, now);
        if (!peer) return false;
    }
    auto* ethernet = reinterpret_cast<rte_ether_hdr*>(to);
    auto* ip = reinterpret_cast<rte_ipv4_hdr*>(ethernet + 1);
    auto* udp = reinterpret_cast<rte_udp_hdr*>(ip + 1);
    put_mac(&ethernet->dst_addr, *peer);
    put_mac(&ethernet->src_addr, mac_);
    ethernet->ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
    *ip = {};
    ip->version_ihl = RTE_IPV4_VHL_DEF;
    ip->total_length = rte_cpu_to_be_16(static_cast<std::uint16_t>(sizeof *ip + sizeof *udp + payload));
    ip->fragment_offset = rte_cpu_to_be_16(RTE_IPV4_HDR_DF_FLAG);
    ip->time_to_live = 64;
    ip->next_proto_id = IPPROTO_UDP;
    ip->src_addr = rte_cpu_to_be_32(from_ip);
    ip->dst_addr = rte_cpu_to_be_32(to_ip);
    ip->hdr_checksum = rte_ipv4_cksum(ip);
    udp->src_port = rte_cpu_to_be_16(from_port);
    udp->dst_port = rte_cpu_to_be_16(to_port);
    udp->dgram_len = rte_cpu_to_be_16(static_cast<std::uint16_t>(sizeof *udp + payload));
    udp->dgram_cksum = 0;  // none: the packet has its own
    return true;
}

// --- who is where ---------------------------------------------------------------------------------

std::uint32_t Link::hop_to(std::uint32_t ip) const {
    const std::uint32_t network = own_->prefix ? ~std::uint32_t{0} << (32 - own_->prefix) : 0;
    return (ip ^ own_->ip) & network ? own_->gateway : ip;
}

const Mac* Link::next_hop(std::uint32_t ip, Time now) {
    const std::uint32_t hop = hop_to(ip);
    if (!hop) return nullptr;
    auto found = neighbours_.find(hop);
    if (found == neighbours_.end()) {
        // Who asks from addresses that nobody has must not push out who is there.
        if (neighbours_.size() >= most_neighbours) std::erase_if(neighbours_, [](auto& each) { return !each.second.known; });
        if (neighbours_.size() >= most_neighbours) return nullptr;
        found = neighbours_.emplace(hop, Neighbour{}).first;
        ask(hop, found->second, now);
        return nullptr;
    }
    Neighbour& neighbour = found->second;
    const bool old = neighbour.known && now - neighbour.heard > stale;
    if ((!neighbour.known || old) && now - neighbour.asked > (old ? ask_again_stale : ask_again))
        ask(hop, neighbour, now);
    return neighbour.known ? &neighbour.mac : nullptr;
}

void Link::ask(std::uint32_t ip, Neighbour& neighbour, Time now) {
    neighbour.asked = now;
    if (own_->asks) put_arp(RTE_ARP_OP_REQUEST, everybody, ip);
}

void Link::learn(std::uint32_t ip, const Mac& mac) {
    if (mac[0] & 1) return;
    Neighbour& neighbour = neighbours_[ip];
    neighbour.mac = mac;
    neighbour.known = true;
}

// Where the kernel answers ARP we hear none, and a packet's own sender says who has its address. Somebody who says so
// wrongly takes nobody's place while that one is heard.
void Link::note_sender(std::uint32_t ip, const Mac& mac, Time now) {
    const std::uint32_t hop = hop_to(ip);
    if (!hop || mac[0] & 1 || mac == mac_) return;
    auto found = neighbours_.find(hop);
    if (found == neighbours_.end()) {
        if (neighbours_.size() >= most_neighbours)
            std::erase_if(neighbours_, [&](auto& each) { return now - each.second.heard > stale; });
        if (neighbours_.size() >= most_neighbours) return;
        found = neighbours_.emplace(hop, Neighbour{}).first;
    }
    Neighbour& neighbour = found->second;
    if (neighbour.known && neighbour.mac != mac && now - neighbour.heard <= stale) return;
    neighbour = {.mac = mac, .known = true, .asked = now, .heard = now};
}

void Link::heard_arp(Bytes frame, Time now) {
    if (!own_ || !own_->asks) return;
    const auto* arp = reinterpret_cast<const rte_arp_hdr*>(frame.data() + sizeof(rte_ether_hdr));
    if (arp->arp_hardware != rte_cpu_to_be_16(RTE_ARP_HRD_ETHER) ||
        arp->arp_protocol != rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4) || arp->arp_hlen != RTE_ETHER_ADDR_LEN ||
        arp->arp_plen != sizeof(std::uint32_t))
        return;
    const std::uint32_t sender = rte_be_to_cpu_32(arp->arp_data.arp_sip);
    const Mac mac = mac_of(arp->arp_data.arp_sha);
    if (mac[0] & 1 || mac == mac_) return;  // a group's address is nobody's; and our own words come back
    if (auto asked = neighbours_.find(sender); asked != neighbours_.end()) {
        asked->second.mac = mac;
        asked->second.known = true;
        asked->second.heard = now;
    }
    if (arp->arp_opcode == rte_cpu_to_be_16(RTE_ARP_OP_REQUEST) &&
        arp->arp_data.arp_tip == rte_cpu_to_be_32(own_->ip))
        put_arp(RTE_ARP_OP_REPLY, mac, sender);
}

void Link::put_arp(std::uint16_t what, const Mac& to, std::uint32_t ip) {
    if (arp_.size() >= most_arp) return;
    auto& frame = arp_.emplace_back();
    auto* ethernet = reinterpret_cast<rte_ether_hdr*>(frame.data());
    auto* arp = reinterpret_cast<rte_arp_hdr*>(ethernet + 1);
    put_mac(&ethernet->dst_addr, to);
    put_mac(&ethernet->src_addr, mac_);
    ethernet->ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_ARP);
    *arp = {};
    arp->arp_hardware = rte_cpu_to_be_16(RTE_ARP_HRD_ETHER);
    arp->arp_protocol = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
    arp->arp_hlen = RTE_ETHER_ADDR_LEN;
    arp->arp_plen = sizeof(std::uint32_t);
    arp->arp_opcode = rte_cpu_to_be_16(what);
    put_mac(&arp->arp_data.arp_sha, mac_);
    arp->arp_data.arp_sip = rte_cpu_to_be_32(own_->ip);
    if (what == RTE_ARP_OP_REPLY) put_mac(&arp->arp_data.arp_tha, to);
    arp->arp_data.arp_tip = rte_cpu_to_be_32(ip);
}

bool Link::next_arp(std::array<std::byte, arp_frame>& frame) {
    if (arp_.empty()) return false;
    frame = arp_.front();
    arp_.pop_front();
    return true;
}

}  // namespace genie::dpdk
