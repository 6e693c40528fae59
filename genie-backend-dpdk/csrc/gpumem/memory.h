// A device's memory: what GPUDev's drivers give, behind one interface for all devices. No DPDK here.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>

#include "../protocol/elsewhere.h"

namespace genie::gpumem {

// What NVIDIA GPUs map for other devices of PCIe is whole pages of this size, so all memory here is.
constexpr std::size_t page = 64 << 10;

constexpr std::size_t whole_pages(std::size_t bytes) { return (bytes + page - 1) / page * page; }

struct Unavailable : std::runtime_error {  // there is no such device here; says why
    using std::runtime_error::runtime_error;
};

class Memory : public protocol::Copier {
  public:
    virtual std::string name() const = 0;  // as DPDK will know the device
    virtual std::size_t total() const = 0;  // bytes
    virtual bool readable() const = 0;  // by the host's own instructions, where it lies
    // Whole pages, at an address that is a multiple of a page. Throws std::bad_alloc where there is no room.
    virtual std::byte* allocate(std::size_t bytes) = 0;
    virtual void release(std::byte* at) = 0;
    // Memory of the host's that the device may read and write by itself from then on.
    virtual void admit(std::byte* host, std::size_t bytes) = 0;
    virtual void dismiss(std::byte* host) = 0;
};

// Memory of this host in the place of a device's. `guarded`: the address that it is known by can't be read or written,
// as a GPU's can't, and whoever tries is killed; only `copy` gets there.
std::unique_ptr<Memory> soft_memory(std::size_t total, bool guarded);

// An NVIDIA GPU's, through its driver, which is loaded when this is called. Throws Unavailable.
std::unique_ptr<Memory> cuda_memory(int ordinal);

}  // namespace genie::gpumem
