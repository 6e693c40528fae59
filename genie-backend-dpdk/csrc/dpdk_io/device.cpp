#include "device.h"

#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include <algorithm>
#include <stdexcept>

#include "eal.h"

namespace genie::dpdk {

namespace {

constexpr std::uint16_t descriptors = 1024;
constexpr std::size_t worth_attaching = 1024;  // bytes: below, copying is cheaper

// A segment's memory in a frame: held until DPDK gives the buffer back.
struct Held {
    rte_mbuf_ext_shared_info shared{};
    std::shared_ptr<protocol::Segment> segment;
};

void give_back(void*, void* held) { delete static_cast<Held*>(held); }

[[noreturn]] void refuse(const std::string& name, const char* what, int error) {
    throw std::runtime_error(name + ": " + what + ": " + rte_strerror(error < 0 ? -error : rte_errno));
}

}  // namespace

Device::Device(std::string name, const std::string& arguments, const std::optional<Addressing>& own)
    : name_(std::move(name)) {
    on_eal([&] {
        if (int error = rte_eal_hotplug_add("vdev", name_.c_str(), arguments.c_str()))
            refuse(name_, "DPDK makes no such device", error);
        try {
            if (int error = rte_eth_dev_get_port_by_name(name_.c_str(), &port_)) refuse(name_, "it has no port", error);
            set_up();
            if (own) {
                rte_ether_addr address;
                if (int error = rte_eth_macaddr_get(port_, &address)) refuse(name_, "it has no address", error);
                Mac mac;
                std::copy_n(address.addr_bytes, mac.size(), mac.begin());
                link_ = Link(*own, mac);
            }
        } catch (...) {
            rte_eal_hotplug_remove("vdev", name_.c_str());
            throw;
        }
    });
}

void Device::set_up() {
    rte_eth_dev_info info;
    if (int error = rte_eth_dev_info_get(port_, &info)) refuse(name_, "it can't be asked what it can do", error);
    rte_eth_conf wanted{};
    segments_ = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    if (segments_) wanted.txmode.offloads |= RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    if (int error = rte_eth_dev_configure(port_, 1, 1, &wanted)) refuse(name_, "it can't be configured", error);
    if (int error = rte_eth_rx_queue_setup(port_, 0, descriptors, SOCKET_ID_ANY, nullptr, frame_pool()))
        refuse(name_, "it has no queue to receive", error);
    if (int error = rte_eth_tx_queue_setup(port_, 0, descriptors, SOCKET_ID_ANY, nullptr))
        refuse(name_, "it has no queue to send", error);
    if (int error = rte_eth_dev_start(port_)) refuse(name_, "it can't be started", error);
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

unsigned Device::receive(const std::function<void(protocol::Path, protocol::Bytes)>& each, protocol::Time now) {
    rte_mbuf* frames[burst];
    const unsigned count = rte_eth_rx_burst(port_, 0, frames, burst);
    for (unsigned at = 0; at < count; ++at) {
        rte_mbuf* frame = frames[at];
        // A frame fits one buffer; a chain of them is no frame of ours.
        if (frame->nb_segs == 1) {
            const protocol::Bytes bytes(rte_pktmbuf_mtod(frame, const std::byte*), rte_pktmbuf_data_len(frame));
            if (const auto came = link_.take(bytes, now)) each(came->path, came->packet);
        }
        rte_pktmbuf_free(frame);
    }
    send_arp();
    return count;
}

void Device::send_arp() {
    std::array<std::byte, arp_frame> arp;
    while (count_ < burst && link_.next_arp(arp)) {
        rte_mbuf* frame = rte_pktmbuf_alloc(frame_pool());
        if (!frame) return;
        std::memcpy(rte_pktmbuf_append(frame, arp_frame), arp.data(), arp.size());
        frames_[count_++] = frame;
    }
    flush();
}

rte_mbuf* Device::linear(const std::byte* headers, const protocol::Outgoing& out) const {
    rte_mbuf* frame = rte_pktmbuf_alloc(frame_pool());
    if (!frame) return nullptr;
    const std::size_t packet = out.header.size() + out.payload.size();
    char* to = rte_pktmbuf_append(frame, static_cast<std::uint16_t>(frame_headers + packet));
    if (!to) {
        rte_pktmbuf_free(frame);
        return nullptr;
    }
    std::memcpy(to, headers, frame_headers);
    std::memcpy(to + frame_headers, out.header.data(), out.header.size());
    if (!out.payload.empty())
        std::memcpy(to + frame_headers + out.header.size(), out.payload.data(), out.payload.size());
    return frame;
}

rte_mbuf* Device::attached(const std::byte* headers, const protocol::Outgoing& out) const {
    rte_mbuf* pair[2];
    if (rte_pktmbuf_alloc_bulk(frame_pool(), pair, 2)) return nullptr;
    auto [frame, rest] = pair;
    char* to = rte_pktmbuf_append(frame, frame_headers + protocol::header_bytes);
    std::memcpy(to, headers, frame_headers);
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

bool Device::send(protocol::Path path, const protocol::Outgoing& out, protocol::Time now) {
    std::byte headers[frame_headers];
    if (!link_.wrap(headers, path, out.header.size() + out.payload.size(), now)) {
        send_arp();
        return count_ < burst;
    }
    const bool attaches = segments_ && out.segment && out.payload.size() >= worth_attaching;
    if (rte_mbuf* frame = attaches ? attached(headers, out) : linear(headers, out))
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
