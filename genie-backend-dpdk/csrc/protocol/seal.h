// What shows that a packet is the peer's, and as it was sent: SipHash-2-4 over the header (libsodium), which holds a
// keyed XXH3 of the payload (xxHash).
#pragma once

#include <array>

#include "header.h"

namespace genie::protocol {

using Key = std::array<std::byte, 32>;
using Nonce = std::array<std::byte, 16>;

class Seal {
  public:
    // For INIT, ACCEPT and REFUSE, before there is a secret: it shows damage, not who sent.
    static Seal open();
    // `purpose` keeps keys made of the same secret apart.
    static Seal derived(const char* purpose, Bytes secret, const Nonce& client, const Nonce& server);

    // Between two processes that share the memory payloads go through, and nobody else, a digest shows nothing.
    Seal undigested() const {
        Seal seal = *this;
        seal.digests_ = false;
        return seal;
    }

    // Fills in the digest and appends the MAC: 64 bytes to `to`.
    void put(Header header, Bytes payload, std::byte* to) const;
    bool holds(const Header& header, Bytes packet) const;
    bool header_holds(Bytes packet) const;
    bool payload_holds(const Header& header, Bytes payload) const;

  private:
    explicit Seal(Bytes secret);
    std::uint64_t digest(Bytes payload) const;

    std::array<std::byte, 16> mac_{};
    std::array<std::byte, 192> payload_{};
    bool digests_ = true;
};

void random_bytes(Space to);

}  // namespace genie::protocol
