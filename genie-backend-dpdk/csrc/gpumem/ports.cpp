#define ALLOW_EXPERIMENTAL_API  // rte_dev_dma_map is one still

#include "ports.h"

#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_memory.h>

#include <atomic>

#include "../dpdk_io/eal.h"

namespace genie::gpumem {

namespace {

[[noreturn]] void refuse(const char* what, int error) {
    throw std::runtime_error(std::string(what) + ": " + rte_strerror(error));
}

void* at(const Range& range) { return reinterpret_cast<void*>(range.start); }

rte_device* device_of(int port) {
    rte_eth_dev_info info;
    return rte_eth_dev_info_get(static_cast<std::uint16_t>(port), &info) ? nullptr : info.device;
}

class Dpdk final : public Registrar {
  public:
    void add(const Range& range) override {
        if (rte_extmem_register(at(range), range.bytes, nullptr, 0, page)) refuse("DPDK takes no such memory", rte_errno);
    }
    void remove(const Range& range) noexcept override { rte_extmem_unregister(at(range), range.bytes); }
    // A virtual device has nothing to map: it copies by the CPU.
    void map(int port, const Range& range) override {
        rte_device* device = device_of(port);
        if (!device || rte_dev_dma_map(device, at(range), range.start, range.bytes))
            refuse("the port's device can't reach such memory", device ? rte_errno : ENODEV);
    }
    void unmap(int port, const Range& range) noexcept override {
        if (rte_device* device = device_of(port)) rte_dev_dma_unmap(device, at(range), range.start, range.bytes);
    }
};

}  // namespace

Registrations& registrations() {
    static Dpdk* registrar = new Dpdk;  // as EAL, neither is ever destroyed
    static auto* all = new Registrations(*registrar, {});
    return *all;
}

struct Payloads::Segments {
    rte_eth_rxseg pair[2]{};
};

Payloads::Payloads(std::shared_ptr<GpuDevice> device, int port, unsigned head, unsigned room, unsigned count)
    : segments_(std::make_unique<Segments>()), head_(head) {
    const unsigned each = RTE_ALIGN_CEIL(room + RTE_PKTMBUF_HEADROOM, RTE_CACHE_LINE_SIZE);
    memory_ = device->allocate(std::size_t{each} * count);
    lease_ = registrations().acquire(port, range_of(memory_->at(), memory_->bytes()));
    if (!lease_)
        throw std::runtime_error("no room to register memory for payloads: all that is registered is in use");
    static std::atomic<unsigned> numbers{0};
    const std::string name = "genie_payloads_" + std::to_string(numbers++);
    rte_pktmbuf_extmem where{};
    where.buf_ptr = memory_->at();
    where.buf_iova = reinterpret_cast<rte_iova_t>(memory_->at());
    where.buf_len = memory_->bytes();
    where.elt_size = static_cast<std::uint16_t>(each);
    pool_ = rte_pktmbuf_pool_create_extbuf(name.c_str(), count, 0, 0, where.elt_size, SOCKET_ID_ANY, &where, 1);
    if (!pool_) refuse("no buffers for payloads", rte_errno);
}

Payloads::~Payloads() { rte_mempool_free(pool_); }

bool Payloads::can_split(const rte_eth_dev_info& can) {
    return (can.rx_offload_capa & offloads()) == offloads() && can.rx_seg_capa.multi_pools &&
           can.rx_seg_capa.max_nseg >= 2;
}

// mlx5 takes the one only with the other.
std::uint64_t Payloads::offloads() { return RTE_ETH_RX_OFFLOAD_BUFFER_SPLIT | RTE_ETH_RX_OFFLOAD_SCATTER; }

void Payloads::configure(rte_eth_rxconf& wanted, rte_mempool* heads) {
    auto& [first, second] = segments_->pair;
    first.split.mp = heads;
    first.split.length = static_cast<std::uint16_t>(head_);
    second.split.mp = pool_;
    wanted.offloads |= offloads();
    wanted.rx_seg = segments_->pair;
    wanted.rx_nseg = 2;
}

bool Payloads::holds(const rte_mbuf* piece) const { return piece->pool == pool_; }

rte_mbuf* Payloads::split(rte_mbuf* frame) {
    if (frame->nb_segs != 1 || frame->data_len <= head_) return frame;
    const auto length = static_cast<std::uint16_t>(frame->data_len - head_);
    rte_mbuf* payload = rte_pktmbuf_alloc(pool_);
    if (!payload) return frame;
    auto* to = rte_pktmbuf_mtod(payload, std::byte*);
    Memory& memory = memory_->device().memory();
    const bool fits = length <= rte_pktmbuf_tailroom(payload);
    if (fits) memory.copy(to, rte_pktmbuf_mtod_offset(frame, const std::byte*, head_), length);
    if (!memory.finish() || !fits) {
        rte_pktmbuf_free(payload);
        return frame;
    }
    payload->data_len = length;
    payload->pkt_len = length;
    frame->data_len = static_cast<std::uint16_t>(head_);
    frame->next = payload;
    frame->nb_segs = 2;
    return frame;
}

}  // namespace genie::gpumem
