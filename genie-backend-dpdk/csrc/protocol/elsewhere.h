// Memory that this process does not read and write by itself: a device's.
#pragma once

#include <cstddef>

namespace genie::protocol {

// Either end of a copy may lie in the device's memory or in the host's.
class Copier {
  public:
    virtual ~Copier() = default;
    // Done when `finish` returns, at the latest; until then both ends stay as they are.
    virtual void copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept = 0;
    // False when a copy did not succeed, whoever asked for it, and from then on.
    virtual bool finish() noexcept = 0;
};

// A packet's payload there. `readable`: the host's own instructions can read it where it lies.
struct Elsewhere {
    const std::byte* payload = nullptr;
    std::size_t room = 0;  // bytes that came
    Copier* copier = nullptr;
    bool readable = false;
};

}  // namespace genie::protocol
