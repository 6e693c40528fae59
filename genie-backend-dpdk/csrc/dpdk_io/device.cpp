#include "device.h"

#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>

#include "eal.h"

namespace genie::dpdk {

namespace {

constexpr std::uint16_t descriptors = 1024;
constexpr unsigned payloads = 2 * descriptors;  // buffers in a device's memory: some are filled, some looked at
constexpr unsigned split_at = frame_headers + protocol::header_bytes;
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

void add_device(const std::string& name, const std::string& arguments) {
    on_eal([&] {
        if (int error = rte_eal_hotplug_add("vdev", name.c_str(), arguments.c_str()))
            refuse(name, "DPDK makes no such device", error);
    });
}

Device::Device(std::string name, const std::string& arguments, const std::optional<Addressing>& own, Gpu gpu,
               std::optional<Nic> nic)
    : name_(std::move(name)), nic_(std::move(nic)), reads_memory_(nic_ && nic_->bus != "vdev"), gpu_(std::move(gpu)) {
    at_home([&] { make(arguments, own); });
}

// NICs' drivers expect the thread that started EAL; some wait there for what the interrupt thread tells them.
void Device::at_home(const std::function<void()>& job) const { nic_ ? on_main(job) : on_eal(job); }

void Device::make(const std::string& arguments, const std::optional<Addressing>& own) {
    const char* bus = nic_ ? nic_->bus.c_str() : "vdev";
    if (int error = rte_eal_hotplug_add(bus, name_.c_str(), arguments.c_str()))
        throw std::runtime_error(name_ + ": " + attach_failure(error));
    try {
        find_port();
        set_up();
        if (own) {
            rte_ether_addr address;
            if (int error = rte_eth_macaddr_get(port_, &address)) refuse(name_, "it has no address", error);
            Mac mac;
            std::copy_n(address.addr_bytes, mac.size(), mac.begin());
            link_ = Link(*own, mac);
            ip_ = own->ip;
        }
    } catch (...) {
        stop();
        remove();
        throw;
    }
}

// By its device: a driver may give the port of a NIC another name.
void Device::find_port() {
    std::uint16_t port;
    RTE_ETH_FOREACH_DEV(port) {
        rte_eth_dev_info info;
        if (!rte_eth_dev_info_get(port, &info) && info.device && rte_dev_name(info.device) == name_) {
            port_ = port;
            return;
        }
    }
    refuse(name_, "it has no port", -ENODEV);
}

void Device::set_up() {
    rte_eth_dev_info info;
    if (int error = rte_eth_dev_info_get(port_, &info)) refuse(name_, "it can't be asked what it can do", error);
    const Plan asked = plan(info, nic_ ? nic_->mtu : 0, gpu_.memory != nullptr);
    if (!asked.problem.empty()) throw std::runtime_error(name_ + ": " + asked.problem);
    if (nic_ && nic_->shared) steering_.isolate(port_);
    rte_eth_conf wanted{};
    segments_ = asked.segments;
    splits_ = asked.splits;
    wanted.txmode.offloads = asked.sending;
    wanted.rxmode.offloads = asked.receiving;
    if (int error = rte_eth_dev_configure(port_, 1, 1, &wanted)) refuse(name_, "it can't be configured", error);
    if (nic_) set_mtu();
    std::uint16_t to_receive = descriptors, to_send = descriptors;
    if (int error = rte_eth_dev_adjust_nb_rx_tx_desc(port_, &to_receive, &to_send))
        refuse(name_, "it has no queues of a length that will do", error);
    if (splits_ || (gpu_.memory && gpu_.split_here))
        payloads_ = std::make_unique<gpumem::Payloads>(gpu_.memory, port_, split_at, frame_room() - split_at, payloads);
    rte_eth_rxconf receiving = info.default_rxconf;
    receiving.offloads = asked.receiving;
    rte_eth_txconf sending = info.default_txconf;
    sending.offloads = asked.sending;
    if (splits_) payloads_->configure(receiving, frame_pool());
    if (int error = rte_eth_rx_queue_setup(port_, 0, to_receive, SOCKET_ID_ANY, &receiving,
                                           splits_ ? nullptr : frame_pool()))
        refuse(name_, "it has no queue to receive", error);
    if (int error = rte_eth_tx_queue_setup(port_, 0, to_send, SOCKET_ID_ANY, &sending))
        refuse(name_, "it has no queue to send", error);
    if (int error = rte_eth_dev_start(port_)) refuse(name_, "it can't be started", error);
    if (!nic_) return;
    rte_eth_promiscuous_disable(port_);  // which a driver without it need not do
    if (nic_->asks) steering_.take_arp();
    try {
        wait_for_link(port_, nic_->link_wait);
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(name_ + ": " + error.what());
    }
}

void Device::set_mtu() const {
    std::uint16_t now = 0;
    if (!rte_eth_dev_get_mtu(port_, &now) && now == nic_->mtu) return;
    if (int error = rte_eth_dev_set_mtu(port_, nic_->mtu); error && now < nic_->mtu)
        refuse(name_, "its MTU can't be set", error);
}

Device::~Device() {
    discard();
    at_home([&] {
        stop();
        remove();
    });
}

void Device::stop() {
    if (port_ == UINT16_MAX) return;
    steering_.leave_all();
    rte_eth_dev_stop(port_);
}

void Device::remove() {
    if (port_ != UINT16_MAX) gpumem::registrations().drop_port(port_);
    rte_eal_hotplug_remove(nic_ ? nic_->bus.c_str() : "vdev", name_.c_str());
}

void Device::hold(std::uint16_t port) {
    steering_.take_udp(ip_, port);
    link_.hold(port);
}

void Device::release(std::uint16_t port) {
    link_.release(port);
    steering_.leave_udp(port);
}

bool Device::up() const {
    rte_eth_link link{};
    return !rte_eth_link_get_nowait(port_, &link) && link.link_status;
}

unsigned Device::receive(const Each& each, protocol::Time now) {
    rte_mbuf* frames[burst];
    const unsigned count = rte_eth_rx_burst(port_, 0, frames, burst);
    for (unsigned at = 0; at < count; ++at) {
        if (payloads_ && !splits_) frames[at] = payloads_->split(frames[at]);
        take(frames[at], each, now);
    }
    // A device copies on its own, all of them at once; what they come from must stay until then.
    if (count && gpu_.memory && !gpu_.memory->memory().finish()) memory_failed_ = true;
    rte_pktmbuf_free_bulk(frames, count);
    send_arp();
    return count;
}

void Device::take(rte_mbuf* frame, const Each& each, protocol::Time now) {
    if ((frame->ol_flags & RTE_MBUF_F_RX_IP_CKSUM_MASK) == RTE_MBUF_F_RX_IP_CKSUM_BAD) return;
    if (payloads_ && frame->nb_segs == 2 && payloads_->holds(frame->next)) return take_split(frame, each, now);
    // Other frames fit one buffer; a chain of them is no frame of ours.
    if (frame->nb_segs != 1) return;
    const protocol::Bytes bytes(rte_pktmbuf_mtod(frame, const std::byte*), rte_pktmbuf_data_len(frame));
    if (const auto came = link_.take(bytes, now)) each(came->path, came->packet, {});
}

void Device::take_split(rte_mbuf* frame, const Each& each, protocol::Time now) {
    const protocol::Bytes head(rte_pktmbuf_mtod(frame, const std::byte*), rte_pktmbuf_data_len(frame));
    const std::size_t behind = rte_pktmbuf_data_len(frame->next);
    if (head.size() != split_at || behind > frame_room() - split_at) return;
    const auto* payload = rte_pktmbuf_mtod(frame->next, const std::byte*);
    gpumem::Memory& memory = gpu_.memory->memory();
    if (protocol::kind_of(head.subspan(frame_headers)) == protocol::Kind::data) {
        if (const auto came = link_.take(head, now, behind); came && came->packet.size() == protocol::header_bytes)
            each(came->path, came->packet, {payload, behind, &memory, memory.readable()});
        return;
    }
    // What the protocol has to read itself.
    std::vector<std::byte> whole(head.begin(), head.end());
    whole.resize(head.size() + behind);
    memory.copy(whole.data() + head.size(), payload, behind);
    if (!memory.finish()) {
        memory_failed_ = true;
        return;
    }
    if (const auto came = link_.take(whole, now)) each(came->path, came->packet, {});
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
    // Virtual devices copy by address; one that reads by itself gets registered memory alone.
    auto* at = const_cast<std::byte*>(out.payload.data());
    const bool registered = out.segment->memory && out.segment->own.empty();
    const rte_iova_t known = registered ? reinterpret_cast<rte_iova_t>(at) : RTE_BAD_IOVA;
    rte_pktmbuf_attach_extbuf(rest, at, known, length, &held->shared);
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
    const bool readable = !reads_memory_ || (out.segment && out.segment->memory && out.segment->own.empty());
    const bool attaches = segments_ && readable && out.segment && out.payload.size() >= worth_attaching;
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
