#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "check.h"

namespace genie::gpumem::check {

namespace {

std::vector<std::byte> read(Memory& memory, const std::byte* at, std::size_t bytes) {
    std::vector<std::byte> data(bytes);
    memory.copy(data.data(), at, bytes);
    expect(memory.finish(), "it is read");
    return data;
}

}  // namespace

void any_memory(Memory& memory) {
    for (std::size_t size : {std::size_t{1}, page - 1, page, page + 1, std::size_t{5} << 20}) {
        std::byte* at = memory.allocate(size);
        expect(reinterpret_cast<std::uintptr_t>(at) % page == 0, "memory begins with a page");
        const auto data = noise(whole_pages(size), 1);
        memory.copy(at, data.data(), data.size());
        expect(memory.finish(), "it is written, to its page's end");
        expect(read(memory, at, data.size()) == data, "what is read is what was written");
        memory.release(at);
    }

    // Pieces of packets, in whatever order they came, to their place.
    constexpr std::size_t piece = 8192, count = 512;
    const auto data = noise(piece * count, 2);
    std::byte* came = memory.allocate(data.size());
    std::byte* place = memory.allocate(data.size());
    std::vector<std::size_t> order(count);
    for (std::size_t at = 0; at < count; ++at) order[at] = at;
    std::shuffle(order.begin(), order.end(), std::mt19937(3));
    for (std::size_t at = 0; at < count; ++at) memory.copy(came + at * piece, data.data() + order[at] * piece, piece);
    expect(memory.finish(), "pieces come");
    for (std::size_t at = 0; at < count; ++at) memory.copy(place + order[at] * piece, came + at * piece, piece);
    expect(memory.finish(), "pieces are put together");
    expect(read(memory, place, data.size()) == data, "put together they are what was sent");
    memory.release(came);
    memory.release(place);

    refused<std::bad_alloc>([&] { memory.allocate(std::numeric_limits<std::size_t>::max()); }, "more than there is");
    refused<std::bad_alloc>([&] { memory.allocate(memory.total() + page); }, "more than the device has");
    refused<std::invalid_argument>([&] { memory.release(place); }, "memory that is not allocated");
    for (int again = 0; again < 1000; ++again) memory.release(memory.allocate(std::size_t{1} << 20));
    auto host = noise(4 * page, 4);
    memory.admit(host.data(), host.size());
    memory.dismiss(host.data());
}

void soft() {
    for (bool guarded : {false, true}) {
        const auto memory = soft_memory(std::size_t{64} << 20, guarded);
        any_memory(*memory);
        std::byte* one = memory->allocate(page);
        refused<std::bad_alloc>([&] { memory->allocate(std::size_t{64} << 20); }, "more than is left");
        memory->allocate((std::size_t{64} << 20) - page);  // the memory's end frees it
        std::vector<std::byte> host(2 * page);
        memory->copy(host.data(), one, page + 1);
        expect(!memory->finish(), "what goes beyond the end is not copied");
        memory->copy(host.data(), one, page);
        expect(!memory->finish(), "a device that did not copy is not believed again");
    }
    std::printf("{\"check\": \"soft\"}\n");
}

}  // namespace genie::gpumem::check
