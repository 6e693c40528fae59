// A device's memory as DPDK sees it: GPUDev, registration, buffers for payloads. A GPU's where there is one.
#define ALLOW_EXPERIMENTAL_API  // all of GPUDev is one

#include <rte_eal.h>
#include <rte_dev.h>
#include <rte_ethdev.h>
#include <rte_gpudev.h>
#include <rte_mbuf.h>

#include <cstring>

#include "../../dpdk_io/eal.h"
#include "../ports.h"
#include "check.h"

namespace genie::gpumem::check {

namespace {

void one(std::unique_ptr<Memory> memory, int port) {
    const auto device = GpuDevice::make(std::move(memory));
    const auto data = noise(5000, 1);
    {
        const auto allocation = device->allocate(3 * page + 1);
        expect(allocation->bytes() == 4 * page, "DPDK gives whole pages of it");
        const auto range = range_of(allocation->at(), allocation->bytes());
        const auto lease = gpumem::registrations().acquire(port, range);
        expect(lease && lease->whole(range), "DPDK registers it");
    }
    expect(gpumem::registrations().counters().regions == 0, "and forgets it with its memory");

    auto host = noise(page, 2);
    expect(!rte_gpu_mem_register(device->id(), host.size(), host.data()), "DPDK gives it memory of the host's");
    expect(!rte_gpu_mem_unregister(device->id(), host.data()), "and takes it back");

    constexpr unsigned head = 106;
    Payloads payloads(device, port, head, 8192, 64);
    rte_mbuf* frame = rte_pktmbuf_alloc(dpdk::frame_pool());
    expect(frame, "there is a frame");
    std::memcpy(rte_pktmbuf_append(frame, static_cast<std::uint16_t>(data.size())), data.data(), data.size());
    frame = payloads.split(frame);
    expect(frame->nb_segs == 2 && payloads.holds(frame->next), "a frame's payload lies in the device's memory");
    std::vector<std::byte> got(data.size() - head);
    device->memory().copy(got.data(), rte_pktmbuf_mtod(frame->next, const std::byte*), got.size());
    expect(device->memory().finish() && !std::memcmp(got.data(), data.data() + head, got.size()), "as it was");
    rte_pktmbuf_free(frame);
    std::printf("{\"check\": \"dpdk\", \"device\": \"%s\", \"readable\": %s}\n", device->name().c_str(),
                device->memory().readable() ? "true" : "false");
}

}  // namespace

void dpdk() {
    genie::dpdk::start_eal({"--no-huge", "--no-shconf", "--no-pci", "--no-telemetry", "--iova-mode=va", "-m256",
                            "--log-level=*:error"});
    std::uint16_t port = 0;
    genie::dpdk::on_eal([&] {
        expect(!rte_eal_hotplug_add("vdev", "net_null0", ""), "DPDK makes a device");
        expect(!rte_eth_dev_get_port_by_name("net_null0", &port), "which has a port");
    });
    one(soft_memory(std::size_t{64} << 20, false), port);
    one(soft_memory(std::size_t{64} << 20, true), port);
    one(cuda_memory(0), port);
}

}  // namespace genie::gpumem::check
