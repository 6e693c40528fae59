#include "device.h"

#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_mbuf.h>
#include <rte_udp.h>

#include <algorithm>
#include <stdexcept>

#include "eal.h"

namespace genie::dpdk {

namespace {

constexpr std::uint16_t udp_port = 0x47D7;
constexpr std::uint16_t descriptors = 1024;
constexpr std::size_t worth_attaching = 1024;  // bytes: below, copying is cheaper

static_assert(frame_headers == sizeof(rte_ether_hdr) + sizeof(rte_ipv4_hdr) + sizeof(rte_udp_hdr));

// A point-to-point link needs no addresses; these are for whoever looks on.
void put_headers(char* to, std::size_t payload) {
    auto* ethernet = reinterpret_cast<rte_ether_hdr*>(to);
    auto* ip = reinterpret_cast<rte_ipv4_hdr*>(ethernet + 1);
    auto* udp = reinterpret_cast<rte_udp_hdr*>(ip + 1);
    *ethernet = {};
    std::fill_n(ethernet->dst_addr.addr_bytes, RTE_ETHER_ADDR_LEN, 0xFF);
    ethernet->src_addr.addr_bytes[0] = 2;  // locally administered
    ethernet->ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
    *ip = {};
    ip->version_ihl = RTE_IPV4_VHL_DEF;
    ip->total_length = rte_cpu_to_be_16(static_cast<std::uint16_t>(sizeof *ip + sizeof *udp + payload));
    ip->time_to_live = 64;
    ip->next_proto_id = IPPROTO_UDP;
    ip->src_addr = ip->dst_addr = rte_cpu_to_be_32(RTE_IPV4(169, 254, 71, 215));
    ip->hdr_checksum = rte_ipv4_cksum(ip);
    udp->src_port = udp->dst_port = rte_cpu_to_be_16(udp_port);
    udp->dgram_len = rte_cpu_to_be_16(static_cast<std::uint16_t>(sizeof *udp + payload));
    udp->dgram_cksum = 0;  // none: the packet has its own
}

// Where our packet is in a frame; nothing in a frame that is not ours.
protocol::Bytes packet_in(const std::byte* frame, std::size_t size) {
    if (size < frame_headers) return {};
    const auto* ethernet = reinterpret_cast<const rte_ether_hdr*>(frame);
    const auto* ip = reinterpret_cast<const rte_ipv4_hdr*>(ethernet + 1);
    const auto* udp = reinterpret_cast<const rte_udp_hdr*>(ip + 1);
    const std::size_t length = rte_be_to_cpu_16(udp->dgram_len);
    if (ethernet->ether_type != rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4) || ip->version_ihl != RTE_IPV4_VHL_DEF ||
        ip->next_proto_id != IPPROTO_UDP || udp->dst_port != rte_cpu_to_be_16(udp_port) || length < sizeof *udp ||
        length - sizeof *udp > size - frame_headers)
        return {};
    return protocol::Bytes(frame + frame_headers, length - sizeof *udp);
}

// A segment's memory in a frame: held until DPDK gives the buffer back.
struct Held {
    rte_mbuf_ext_shared_info shared{};
    std::shared_ptr<protocol::Segment> segment;
};

void give_back(void*, void* held) { delete static_cast<Held*>(held); }

[[noreturn]] void refuse(const std::string& name, const char* what, int error) {
    throw std::runtime_error(name + ": " + what + ": " + rte_strerror(error < 0 ? -error : rte_errno));
}

void set_up(const std::string& name, std::uint16_t port, bool& segments) {
    rte_eth_dev_info info;
    if (int error = rte_eth_dev_info_get(port, &info)) refuse(name, "it can't be asked what it can do", error);
    rte_eth_conf wanted{};
    segments = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    if (segments) wanted.txmode.offloads |= RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    if (int error = rte_eth_dev_configure(port, 1, 1, &wanted)) refuse(name, "it can't be configured", error);
    if (int error = rte_eth_rx_queue_setup(port, 0, descriptors, SOCKET_ID_ANY, nullptr, frame_pool()))
        refuse(name, "it has no queue to receive", error);
    if (int error = rte_eth_tx_queue_setup(port, 0, descriptors, SOCKET_ID_ANY, nullptr))
        refuse(name, "it has no queue to send", error);
    if (int error = rte_eth_dev_start(port)) refuse(name, "it can't be started", error);
}

}  // namespace

Device::Device(std::string name, const std::string& arguments) : name_(std::move(name)) {
    on_eal([&] {
        if (int error = rte_eal_hotplug_add("vdev", name_.c_str(), arguments.c_str()))
            refuse(name_, "DPDK makes no such device", error);
        try {
            if (int error = rte_eth_dev_get_port_by_name(name_.c_str(), &port_)) refuse(name_, "it has no port", error);
            set_up(name_, port_, segments_);
        } catch (...) {
            rte_eal_hotplug_remove("vdev", name_.c_str());
            throw;
        }
    });
}

Device::~Device() {
    discard();
    on_eal([&] {
        rte_eth_dev_stop(port_);
        rte_eal_hotplug_remove("vdev", name_.c_str());
    });
}

bool Device::up() const {
    rte_eth_link link{};
    return !rte_eth_link_get_nowait(port_, &link) && link.link_status;
}

unsigned Device::receive(const std::function<void(protocol::Bytes)>& each) {
    rte_mbuf* frames[burst];
    const unsigned count = rte_eth_rx_burst(port_, 0, frames, burst);
    for (unsigned at = 0; at < count; ++at) {
        rte_mbuf* frame = frames[at];
        // A frame fits one buffer; a chain of them is no frame of ours.
        if (frame->nb_segs == 1) {
            const auto packet = packet_in(rte_pktmbuf_mtod(frame, const std::byte*), rte_pktmbuf_data_len(frame));
            if (!packet.empty()) each(packet);
        }
        rte_pktmbuf_free(frame);
    }
    return count;
}

rte_mbuf* Device::linear(const protocol::Outgoing& out) const {
    rte_mbuf* frame = rte_pktmbuf_alloc(frame_pool());
    if (!frame) return nullptr;
    const std::size_t packet = out.header.size() + out.payload.size();
    char* to = rte_pktmbuf_append(frame, static_cast<std::uint16_t>(frame_headers + packet));
    if (!to) {
        rte_pktmbuf_free(frame);
        return nullptr;
    }
    put_headers(to, packet);
    std::memcpy(to + frame_headers, out.header.data(), out.header.size());
    if (!out.payload.empty())
        std::memcpy(to + frame_headers + out.header.size(), out.payload.data(), out.payload.size());
    return frame;
}

rte_mbuf* Device::attached(const protocol::Outgoing& out) const {
    rte_mbuf* pair[2];
    if (rte_pktmbuf_alloc_bulk(frame_pool(), pair, 2)) return nullptr;
    auto [frame, rest] = pair;
    char* to = rte_pktmbuf_append(frame, frame_headers + protocol::header_bytes);
    put_headers(to, out.header.size() + out.payload.size());
    std::memcpy(to + frame_headers, out.header.data(), out.header.size());
    auto* held = new Held{{}, out.segment};
    held->shared.free_cb = give_back;
    held->shared.fcb_opaque = held;
    rte_mbuf_ext_refcnt_set(&held->shared, 1);
    const auto length = static_cast<std::uint16_t>(out.payload.size());
    // Virtual devices copy by address; one that reads by itself would need registered memory.
    rte_pktmbuf_attach_extbuf(rest, const_cast<std::byte*>(out.payload.data()), RTE_BAD_IOVA, length, &held->shared);
    rest->data_off = 0;
    rest->data_len = length;
    rest->pkt_len = length;
    frame->next = rest;
    frame->nb_segs = 2;
    frame->pkt_len += length;
    return frame;
}

bool Device::send(const protocol::Outgoing& out) {
    const bool attaches = segments_ && out.segment && out.payload.size() >= worth_attaching;
    if (rte_mbuf* frame = attaches ? attached(out) : linear(out))
        frames_[count_++] = frame;
    // Without a buffer it is as if lost on the way, and sent again.
    return count_ < burst || flush();
}

void Device::discard() {
    rte_pktmbuf_free_bulk(frames_, count_);
    count_ = 0;
}

bool Device::flush() {
    if (!count_) return true;
    const unsigned sent = rte_eth_tx_burst(port_, 0, frames_, static_cast<std::uint16_t>(count_));
    std::copy(frames_ + sent, frames_ + count_, frames_);
    count_ -= sent;
    return !count_;
}

}  // namespace genie::dpdk
