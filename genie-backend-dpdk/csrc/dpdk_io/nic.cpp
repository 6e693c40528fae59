#include "nic.h"

#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_flow.h>

#include <chrono>
#include <stdexcept>
#include <thread>

#include "../gpumem/ports.h"

namespace genie::dpdk {

Plan plan(const rte_eth_dev_info& can, std::uint16_t mtu, bool split) {
    Plan made;
    if (mtu && can.max_mtu && mtu > can.max_mtu)
        made.problem = "its largest MTU is " + std::to_string(can.max_mtu) + ", and " + std::to_string(mtu) + " is asked for";
    else if (mtu && mtu < can.min_mtu)
        made.problem = "its least MTU is " + std::to_string(can.min_mtu) + ", and " + std::to_string(mtu) + " is asked for";
    made.segments = can.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    made.splits = split && gpumem::Payloads::can_split(can);
    if (made.segments)
        made.sending |= RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    else  // then every frame is one buffer of the one pool, and nobody else refers to it: what this one asks for
        made.sending |= can.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
    // Ours have no UDP checksum, and one that is zero is never wrong.
    made.receiving |= can.rx_offload_capa & RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
    if (made.splits) made.receiving |= gpumem::Payloads::offloads();
    return made;
}

// --- steering -------------------------------------------------------------------------------------

namespace {

[[noreturn]] void refuse(const char* what, const rte_flow_error& error) {
    std::string reason = error.message ? error.message : rte_strerror(rte_errno);
    throw std::runtime_error(std::string(what) + ": " + reason);
}

rte_flow* add_rule(std::uint16_t port, const rte_flow_item* pattern, const char* what) {
    rte_flow_attr attributes{};
    attributes.ingress = 1;
    const rte_flow_action_queue first{0};
    const rte_flow_action actions[] = {{RTE_FLOW_ACTION_TYPE_QUEUE, &first}, {RTE_FLOW_ACTION_TYPE_END, nullptr}};
    rte_flow_error error{};
    rte_flow* rule = rte_flow_create(port, &attributes, pattern, actions, &error);
    if (!rule) refuse(what, error);
    return rule;
}

constexpr rte_flow_item item(rte_flow_item_type type, const void* spec = nullptr, const void* mask = nullptr) {
    return {type, spec, nullptr, mask};
}

}  // namespace

void Steering::isolate(std::uint16_t port) {
    port_ = port;
    rte_flow_error error{};
    if (rte_flow_isolate(port, 1, &error))
        refuse("it can't be shared with the kernel, which would hear nothing any more (isolated mode)", error);
    isolated_ = true;
}

void Steering::take_arp() {
    if (!isolated_) return;
    rte_flow_item_eth which{}, mask{};
    which.type = rte_cpu_to_be_16(RTE_ETHER_TYPE_ARP);
    mask.type = 0xFFFF;
    const rte_flow_item pattern[] = {item(RTE_FLOW_ITEM_TYPE_ETH, &which, &mask), item(RTE_FLOW_ITEM_TYPE_END)};
    arp_ = add_rule(port_, pattern, "it takes no rule for ARP");
}

void Steering::take_udp(std::uint32_t ip, std::uint16_t port) {
    if (!isolated_ || udp_.contains(port)) return;
    rte_flow_item_ipv4 host{}, host_mask{};
    host.hdr.dst_addr = rte_cpu_to_be_32(ip);
    host_mask.hdr.dst_addr = UINT32_MAX;
    rte_flow_item_udp service{}, service_mask{};
    service.hdr.dst_port = rte_cpu_to_be_16(port);
    service_mask.hdr.dst_port = UINT16_MAX;
    const rte_flow_item pattern[] = {item(RTE_FLOW_ITEM_TYPE_ETH), item(RTE_FLOW_ITEM_TYPE_IPV4, &host, &host_mask),
                                     item(RTE_FLOW_ITEM_TYPE_UDP, &service, &service_mask),
                                     item(RTE_FLOW_ITEM_TYPE_END)};
    udp_[port] = add_rule(port_, pattern, "it takes no rule for a UDP port");
}

void Steering::leave_udp(std::uint16_t port) {
    rte_flow_error error{};
    if (auto rule = udp_.extract(port)) rte_flow_destroy(port_, rule.mapped(), &error);
}

void Steering::leave_all() noexcept {
    rte_flow_error error{};
    for (const auto& [port, rule] : udp_) rte_flow_destroy(port_, rule, &error);
    udp_.clear();
    if (arp_) rte_flow_destroy(port_, arp_, &error);
    arp_ = nullptr;
}

// --- the port -------------------------------------------------------------------------------------

void wait_for_link(std::uint16_t port, protocol::Time patience) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + std::chrono::nanoseconds(patience);
    for (;;) {
        rte_eth_link link{};
        if (!rte_eth_link_get_nowait(port, &link) && link.link_status) return;
        if (Clock::now() >= until)
            throw std::runtime_error("it has no link within " + std::to_string(patience / protocol::second) +
                                     " s: see the cable, and the port at its other end");
        std::this_thread::sleep_for(std::chrono::milliseconds(10));  // until the NIC and its peer have agreed
    }
}

std::string attach_failure(int error) {
    switch (error < 0 ? -error : error) {
        case ENOTSUP: return "no driver of this DPDK drives it";
        case ENODEV:
        case ENOENT: return "DPDK sees no such device, or its driver gives it up";
        case EACCES: return "this user may not have it";
        case EBUSY: return "another process has it";
        case EEXIST: return "this process has it already";
        case EPERM: return "DPDK makes no such device: its driver gives it up";  // -1, which many return for whatever it was
        default: return std::string("DPDK makes no such device: ") + rte_strerror(error < 0 ? -error : error);
    }
}

}  // namespace genie::dpdk
