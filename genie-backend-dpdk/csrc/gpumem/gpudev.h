// A device of DPDK's GPUDev, driven by this process: `rte_gpu_mem_alloc` and its like then work on it for everybody.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "memory.h"

namespace genie::gpumem {

class Allocation;

class GpuDevice : public std::enable_shared_from_this<GpuDevice> {
  public:
    // EAL has started. Throws Unavailable where this DPDK has no GPUDev, or another one than this was built for.
    static std::shared_ptr<GpuDevice> make(std::unique_ptr<Memory> memory);
    ~GpuDevice();
    GpuDevice(const GpuDevice&) = delete;
    GpuDevice& operator=(const GpuDevice&) = delete;

    std::shared_ptr<Allocation> allocate(std::size_t bytes);
    Memory& memory() { return *memory_; }
    const std::string& name() const { return name_; }  // GPUDev's
    std::int16_t id() const { return id_; }  // GPUDev's

  private:
    friend Allocation;
    explicit GpuDevice(std::unique_ptr<Memory> memory) : memory_(std::move(memory)) {}
    void attach();

    std::shared_ptr<Memory> memory_;  // until DPDK, too, knows the device no more
    std::string name_;
    std::int16_t id_ = -1;
};

// A device's memory, whole pages, until the last who holds it is gone; with it go its registrations.
class Allocation {
  public:
    ~Allocation();
    Allocation(const Allocation&) = delete;
    Allocation& operator=(const Allocation&) = delete;

    std::byte* at() const { return at_; }
    std::size_t bytes() const { return bytes_; }
    GpuDevice& device() const { return *device_; }

  private:
    friend GpuDevice;
    Allocation(std::shared_ptr<GpuDevice> device, std::size_t bytes);

    std::shared_ptr<GpuDevice> device_;
    std::byte* at_;
    std::size_t bytes_;
};

}  // namespace genie::gpumem
