// The driver's own interface (libcuda), found at run time: neither its header nor its library is needed to build.
// Functions, constants and their meaning: NVIDIA's CUDA Driver API reference and "GPUDirect RDMA" guide.
#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "memory.h"

namespace genie::gpumem {

namespace {

using Result = int;
using DevicePointer = std::uint64_t;
using Handle = void*;  // a context's, a stream's

constexpr Result success = 0;
constexpr Result out_of_memory = 2;
constexpr int unified_addressing = 41;  // CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING
constexpr int sync_memops = 6;  // CU_POINTER_ATTRIBUTE_SYNC_MEMOPS
constexpr unsigned own_order = 1;  // CU_STREAM_NON_BLOCKING
constexpr unsigned for_all_and_mapped = 1 | 2;  // CU_MEMHOSTREGISTER_PORTABLE, _DEVICEMAP

struct Driver {
    Result (*cuInit)(unsigned);
    Result (*cuGetErrorName)(Result, const char**);
    Result (*cuDeviceGetCount)(int*);
    Result (*cuDeviceGet)(int*, int);
    Result (*cuDeviceTotalMem)(std::size_t*, int);
    Result (*cuDeviceGetAttribute)(int*, int, int);
    Result (*cuDevicePrimaryCtxRetain)(Handle*, int);
    Result (*cuDevicePrimaryCtxRelease)(int);
    Result (*cuCtxPushCurrent)(Handle);
    Result (*cuCtxPopCurrent)(Handle*);
    Result (*cuMemAlloc)(DevicePointer*, std::size_t);
    Result (*cuMemFree)(DevicePointer);
    Result (*cuPointerSetAttribute)(const void*, int, DevicePointer);
    Result (*cuMemHostRegister)(void*, std::size_t, unsigned);
    Result (*cuMemHostUnregister)(void*);
    Result (*cuStreamCreate)(Handle*, unsigned);
    Result (*cuStreamDestroy)(Handle);
    Result (*cuMemcpyAsync)(DevicePointer, DevicePointer, std::size_t, Handle);
    Result (*cuStreamSynchronize)(Handle);

    void check(Result result, const char* what) const {
        if (result == success) return;
        if (result == out_of_memory) throw std::bad_alloc();
        const char* name = nullptr;
        const bool named = cuGetErrorName(result, &name) == success && name;
        throw std::runtime_error(std::string(what) + ": " + (named ? name : "error " + std::to_string(result)));
    }
};

template <class Function>
void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) throw Unavailable(std::string("the NVIDIA driver is too old: it has no ") + name);
}

Driver load() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // for good: it can't be unloaded
    if (!library) throw Unavailable("there is no NVIDIA driver (libcuda.so.1)");
    Driver driver{};
    find(library, "cuInit", driver.cuInit);
    find(library, "cuGetErrorName", driver.cuGetErrorName);
    find(library, "cuDeviceGetCount", driver.cuDeviceGetCount);
    find(library, "cuDeviceGet", driver.cuDeviceGet);
    find(library, "cuDeviceTotalMem_v2", driver.cuDeviceTotalMem);
    find(library, "cuDeviceGetAttribute", driver.cuDeviceGetAttribute);
    find(library, "cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain);
    find(library, "cuDevicePrimaryCtxRelease_v2", driver.cuDevicePrimaryCtxRelease);
    find(library, "cuCtxPushCurrent_v2", driver.cuCtxPushCurrent);
    find(library, "cuCtxPopCurrent_v2", driver.cuCtxPopCurrent);
    find(library, "cuMemAlloc_v2", driver.cuMemAlloc);
    find(library, "cuMemFree_v2", driver.cuMemFree);
    find(library, "cuPointerSetAttribute", driver.cuPointerSetAttribute);
    find(library, "cuMemHostRegister_v2", driver.cuMemHostRegister);
    find(library, "cuMemHostUnregister", driver.cuMemHostUnregister);
    find(library, "cuStreamCreate", driver.cuStreamCreate);
    find(library, "cuStreamDestroy_v2", driver.cuStreamDestroy);
    find(library, "cuMemcpyAsync", driver.cuMemcpyAsync);
    find(library, "cuStreamSynchronize", driver.cuStreamSynchronize);
    return driver;
}

DevicePointer pointer(const std::byte* at) { return reinterpret_cast<DevicePointer>(at); }

class Cuda final : public Memory {
  public:
    explicit Cuda(int ordinal) : driver_(load()), ordinal_(ordinal) {
        int count = 0, unified = 0;
        if (const Result result = driver_.cuInit(0); result != success) {
            const char* why = nullptr;
            driver_.cuGetErrorName(result, &why);
            throw Unavailable(std::string("the NVIDIA driver does not start: ") + (why ? why : "of unknown reason"));
        }
        driver_.check(driver_.cuDeviceGetCount(&count), "cuDeviceGetCount");
        if (ordinal < 0 || ordinal >= count)
            throw Unavailable("there is no GPU " + std::to_string(ordinal) + ": the driver has " + std::to_string(count));
        driver_.check(driver_.cuDeviceGet(&device_, ordinal), "cuDeviceGet");
        driver_.check(driver_.cuDeviceGetAttribute(&unified, unified_addressing, device_), "cuDeviceGetAttribute");
        if (!unified) throw Unavailable("the GPU does not share the host's addresses");
        driver_.check(driver_.cuDeviceTotalMem(&total_, device_), "cuDeviceTotalMem");
        driver_.check(driver_.cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
        try {
            const Current current(*this);
            driver_.check(driver_.cuStreamCreate(&stream_, own_order), "cuStreamCreate");
        } catch (...) {
            driver_.cuDevicePrimaryCtxRelease(device_);
            throw;
        }
    }

    ~Cuda() override {
        if (driver_.cuCtxPushCurrent(context_) == success) {
            for (const auto& [at, original] : originals_) driver_.cuMemFree(original);
            driver_.cuStreamDestroy(stream_);
            driver_.cuCtxPopCurrent(nullptr);
        }
        driver_.cuDevicePrimaryCtxRelease(device_);
    }

    std::string name() const override { return "cuda" + std::to_string(ordinal_); }
    std::size_t total() const override { return total_; }
    bool readable() const override { return false; }

    std::byte* allocate(std::size_t bytes) override {
        if (bytes > total_) throw std::bad_alloc();
        const Current current(*this);
        std::lock_guard lock(mutex_);
        DevicePointer original = 0;
        driver_.check(driver_.cuMemAlloc(&original, whole_pages(bytes) + page), "cuMemAlloc");
        const DevicePointer at = whole_pages(original);
        try {
            // What other devices read and write must not be overtaken by copies that seem to be done.
            const unsigned yes = 1;
            driver_.check(driver_.cuPointerSetAttribute(&yes, sync_memops, at), "cuPointerSetAttribute");
            originals_[at] = original;
        } catch (...) {
            driver_.cuMemFree(original);
            throw;
        }
        return reinterpret_cast<std::byte*>(at);
    }

    void release(std::byte* at) override {
        const Current current(*this);
        std::lock_guard lock(mutex_);
        const auto found = originals_.find(pointer(at));
        if (found == originals_.end()) throw std::invalid_argument("no memory of this device begins there");
        driver_.check(driver_.cuMemFree(found->second), "cuMemFree");
        originals_.erase(found);
    }

    void admit(std::byte* host, std::size_t bytes) override {
        const Current current(*this);
        driver_.check(driver_.cuMemHostRegister(host, bytes, for_all_and_mapped), "cuMemHostRegister");
    }

    void dismiss(std::byte* host) override {
        const Current current(*this);
        driver_.check(driver_.cuMemHostUnregister(host), "cuMemHostUnregister");
    }

    // Which way it goes the driver tells by the addresses.
    void copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept override {
        std::lock_guard lock(mutex_);
        if (driver_.cuCtxPushCurrent(context_) != success) {
            failed_ = true;
            return;
        }
        failed_ |= driver_.cuMemcpyAsync(pointer(to), pointer(from), bytes, stream_) != success;
        copying_ = true;
        driver_.cuCtxPopCurrent(nullptr);
    }

    bool finish() noexcept override {
        std::lock_guard lock(mutex_);
        if (std::exchange(copying_, false)) {
            const bool here = driver_.cuCtxPushCurrent(context_) == success;
            failed_ |= !here || driver_.cuStreamSynchronize(stream_) != success;
            if (here) driver_.cuCtxPopCurrent(nullptr);
        }
        return !failed_;
    }

  private:
    class Current {  // the device's context is this thread's
      public:
        explicit Current(const Cuda& cuda) : driver_(cuda.driver_) {
            driver_.check(driver_.cuCtxPushCurrent(cuda.context_), "cuCtxPushCurrent");
        }
        ~Current() { driver_.cuCtxPopCurrent(nullptr); }
        Current(const Current&) = delete;
        Current& operator=(const Current&) = delete;

      private:
        const Driver& driver_;
    };

    const Driver driver_;
    const int ordinal_;
    int device_ = 0;
    std::size_t total_ = 0;
    Handle context_ = nullptr, stream_ = nullptr;
    std::mutex mutex_;
    std::map<DevicePointer, DevicePointer> originals_;  // by the address given out
    bool copying_ = false, failed_ = false;
};

}  // namespace

std::unique_ptr<Memory> cuda_memory(int ordinal) { return std::make_unique<Cuda>(ordinal); }

}  // namespace genie::gpumem
