#include "gpudev.h"

#include "driver_sdk.h"

#include <rte_errno.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "../dpdk_io/eal.h"
#include "ports.h"

namespace genie::gpumem {

#ifdef GENIE_GPUDEV

namespace {

thread_local std::string went_wrong;  // of what a driver says, GPUDev passes on that something did

Memory& memory_of(rte_gpu* device) { return *static_cast<Memory*>(device->process_private); }

template <class Job>
int guarded(Job job) {
    try {
        job();
        return 0;
    } catch (const std::bad_alloc&) {
        went_wrong = "the device has no memory left";
        return -ENOMEM;
    } catch (const std::exception& error) {
        went_wrong = error.what();
        return -EPERM;
    }
}

int op_allocate(rte_gpu* device, std::size_t size, unsigned align, void** at) {
    if (align > page) return -EINVAL;
    return guarded([&] { *at = memory_of(device).allocate(size); });
}

int op_release(rte_gpu* device, void* at) {
    return guarded([&] { memory_of(device).release(static_cast<std::byte*>(at)); });
}

int op_admit(rte_gpu* device, std::size_t size, void* at) {
    return guarded([&] { memory_of(device).admit(static_cast<std::byte*>(at), size); });
}

int op_dismiss(rte_gpu* device, void* at) {
    return guarded([&] { memory_of(device).dismiss(static_cast<std::byte*>(at)); });
}

// What `rte_gpu_allocate` has just filled in, where the declarations that this was built with have it.
bool as_declared(rte_gpu* device, const std::string& name) {
    const rte_gpu_mpshared* shared = device->mpshared;
    if (!shared || std::strncmp(shared->name, name.c_str(), sizeof shared->name) != 0) return false;
    void* callbacks[2];  // an empty list: nothing, and where nothing is
    static_assert(sizeof callbacks == sizeof device->callbacks);
    std::memcpy(callbacks, &device->callbacks, sizeof callbacks);
    static const rte_gpu_ops none{};
    return shared->info.name == shared->name && shared->info.parent == RTE_GPU_ID_NONE &&
           shared->info.numa_node == -1 && shared->info.dev_id >= 0 && shared->process_refcnt == 1 &&
           !shared->dev_private && !device->device && !callbacks[0] && callbacks[1] == &device->callbacks &&
           !std::memcmp(&device->ops, &none, sizeof none) && device->process_state == RTE_GPU_STATE_UNUSED &&
           !device->process_private;
}

}  // namespace

void GpuDevice::attach() {
    static std::atomic<unsigned> numbers{0};
    name_ = "genie_" + memory_->name() + "_" + std::to_string(numbers++);
    dpdk::on_eal([&] {
        rte_gpu* device = rte_gpu_allocate(name_.c_str());
        if (!device) throw Unavailable(std::string("GPUDev takes no device: ") + rte_strerror(rte_errno));
        if (!as_declared(device, name_))
            throw Unavailable("this DPDK's GPUDev is another than the one this was built for: build it anew");
        device->mpshared->info.total_memory = memory_->total();
        device->mpshared->info.page_size = page;
        device->ops.mem_alloc = op_allocate;
        device->ops.mem_free = op_release;
        device->ops.mem_register = op_admit;
        device->ops.mem_unregister = op_dismiss;
        device->process_private = memory_.get();
        rte_gpu_complete_new(device);
        id_ = device->mpshared->info.dev_id;
        rte_gpu_info info{};
        if (!rte_gpu_is_valid(id_) || rte_gpu_info_get(id_, &info) || info.total_memory != memory_->total())
            throw Unavailable("this DPDK's GPUDev does not know a device that was just made: build this anew");
    });
}

GpuDevice::~GpuDevice() {
    if (id_ >= 0 && !dpdk::forked()) dpdk::later([id = id_, memory = memory_] { rte_gpu_close(id); });
}

Allocation::Allocation(std::shared_ptr<GpuDevice> device, std::size_t bytes)
    : device_(std::move(device)), bytes_(whole_pages(bytes)) {
    went_wrong.clear();
    at_ = static_cast<std::byte*>(rte_gpu_mem_alloc(device_->id(), bytes_, page));
    if (at_) return;
    const std::string why = went_wrong.empty() ? rte_strerror(rte_errno) : went_wrong;
    throw std::runtime_error("no memory of the device: " + why);
}

Allocation::~Allocation() {
    if (dpdk::forked()) return;  // it is the parent's
    registrations().forget({reinterpret_cast<std::uintptr_t>(at_), bytes_});
    rte_gpu_mem_free(device_->id(), at_);
}

#else  // without GPUDev there is no device, and nothing to do with one

void GpuDevice::attach() { throw Unavailable("this DPDK has no GPUDev, or a newer one than is known here"); }
GpuDevice::~GpuDevice() = default;
Allocation::Allocation(std::shared_ptr<GpuDevice> device, std::size_t) : device_(std::move(device)), at_(nullptr), bytes_(0) {}
Allocation::~Allocation() = default;

#endif

std::shared_ptr<GpuDevice> GpuDevice::make(std::unique_ptr<Memory> memory) {
    if (!dpdk::frame_pool()) throw Unavailable("DPDK has not started");
    std::shared_ptr<GpuDevice> made(new GpuDevice(std::move(memory)));
    made->attach();
    return made;
}

std::shared_ptr<Allocation> GpuDevice::allocate(std::size_t bytes) {
    if (!bytes || bytes > memory_->total()) throw std::runtime_error("no memory of the device: it has " +
                                                                     std::to_string(memory_->total()) + " bytes in all");
    return std::shared_ptr<Allocation>(new Allocation(shared_from_this(), bytes));
}

}  // namespace genie::gpumem
