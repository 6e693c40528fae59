// What a GPU's memory must do, on a machine that has one; without one it says why not.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "../registrations.h"
#include "check.h"

namespace genie::gpumem::check {

namespace {

struct Counting final : Registrar {
    void add(const Range&) override { ++regions; }
    void remove(const Range&) noexcept override { --regions; }
    void map(int, const Range&) override {}
    void unmap(int, const Range&) noexcept override {}
    int regions = 0;
};

// What the driver itself says of an address.
unsigned attribute(const std::byte* at, int which) {
    static const auto ask = reinterpret_cast<int (*)(void*, int, std::uint64_t)>(
        dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuPointerGetAttribute"));
    unsigned value = 0;
    expect(ask && !ask(&value, which, reinterpret_cast<std::uint64_t>(at)), "the driver knows the address");
    return value;
}

double seconds(auto job) {
    const auto start = std::chrono::steady_clock::now();
    job();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void cuda() {
    refused<Unavailable>([] { cuda_memory(1000); }, "a GPU that there is not");
    const auto memory = cuda_memory(0);
    any_memory(*memory);
    refused<std::bad_alloc>([&] { memory->allocate(memory->total()); }, "more than is left beside the driver's own");
    constexpr std::size_t bytes = std::size_t{256} << 20, piece = 8192;
    std::byte* came = memory->allocate(bytes);
    std::byte* place = memory->allocate(bytes);
    constexpr int memory_type = 2, sync_memops = 6;  // CU_POINTER_ATTRIBUTE_…
    expect(attribute(came, memory_type) == 2, "it is the device's memory");
    expect(attribute(came, sync_memops) == 1, "copies that seem to be done are done");

    Counting registrar;
    {
        Registrations cache(registrar, {});
        const Range whole{reinterpret_cast<std::uintptr_t>(came), bytes};
        const auto lease = cache.acquire(0, whole);
        expect(lease && lease->whole(whole), "it can be registered");
        cache.forget(whole);
    }
    expect(registrar.regions == 0, "and be forgotten");

    const auto whole = [&] {
        memory->copy(place, came, bytes);
        expect(memory->finish(), "a copy of all of it");
    };
    const auto gather = [&](std::size_t wait_every) {
        for (std::size_t at = 0; at < bytes / piece; ++at) {
            memory->copy(place + (bytes / piece - 1 - at) * piece, came + at * piece, piece);
            if ((at + 1) % wait_every == 0) expect(memory->finish(), "a burst's pieces");
        }
        expect(memory->finish(), "the last pieces");
    };
    whole();
    gather(32);
    const double at_once = seconds(whole), in_bursts = seconds([&] { gather(32); });
    memory->release(came);
    memory->release(place);
    std::printf("{\"check\": \"cuda\", \"total_bytes\": %zu, \"copy_gb_s\": %.1f, \"gather_of_8192_gb_s\": %.2f}\n",
                memory->total(), bytes / at_once / 1e9, bytes / in_bursts / 1e9);
}

}  // namespace genie::gpumem::check
