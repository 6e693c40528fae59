// Checks of devices' memory that need no Python: `genie-backend-dpdk/tools/check_gpumem.py` builds and runs them.
#pragma once

#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../memory.h"

namespace genie::gpumem::check {

struct Failed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void expect(bool so, const char* what) {
    if (!so) throw Failed(std::string("not so: ") + what);
}

template <class Error, class Job>
std::string refused(Job job, const char* what) {
    try {
        job();
    } catch (const Error& error) {
        return error.what();
    }
    throw Failed(std::string("not refused: ") + what);
}

inline std::vector<std::byte> noise(std::size_t bytes, unsigned seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> data(bytes);
    for (auto& each : data) each = static_cast<std::byte>(random());
    return data;
}

// What any memory must do.
void any_memory(Memory& memory);

// Each prints one line of JSON, and throws Failed.
void registrations();
void soft();
void cuda();
void packets();
void dpdk();

}  // namespace genie::gpumem::check
