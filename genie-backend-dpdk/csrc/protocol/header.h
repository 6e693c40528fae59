// The header of every packet, byte by byte: docs/dpdk-protocol.md. Nothing here knows of devices, clocks or threads.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace genie::protocol {

static_assert(std::endian::native == std::endian::little, "packets are little-endian");

using Bytes = std::span<const std::byte>;
using Space = std::span<std::byte>;
using Time = std::int64_t;  // nanoseconds of a clock that only goes forward

constexpr Time microsecond = 1000;
constexpr Time millisecond = 1000 * microsecond;
constexpr Time second = 1000 * millisecond;

constexpr std::uint16_t magic = 0x47D7;
constexpr std::uint8_t oldest_version = 1;
constexpr std::uint8_t newest_version = 1;

enum class Kind : std::uint8_t { init = 1, accept = 2, refuse = 3, data = 4, ack = 5, fin = 6, ping = 7, reset = 8 };

struct Header {
    Kind kind{};
    std::uint8_t version = newest_version;
    std::uint8_t phase = 0;  // which key protects the packet: 0 the handshake's, 1 the ticket's
    std::uint16_t length = 0;  // of the payload
    std::uint64_t id = 0;  // the receiver's name for the connection
    std::uint64_t number = 0;  // of the packet: never used twice
    std::uint64_t offset = 0;  // of the payload in the stream; of a FIN, the stream's length
    std::uint64_t acked = 0;  // everything before this offset has come
    std::uint64_t credit = 0;  // the offset up to which the peer may send
    std::uint64_t digest = 0;  // of the payload
};

constexpr std::size_t header_bytes = 64;
constexpr std::size_t sealed_bytes = 56;  // what the MAC, which follows, protects

template <class T>
T load(const std::byte* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class T>
void store(std::byte* to, T value) {
    std::memcpy(to, &value, sizeof value);
}

// Of a packet with a whole header, whatever it is worth.
inline Kind kind_of(Bytes packet) { return Kind{load<std::uint8_t>(packet.data() + 3)}; }

inline void encode(const Header& header, std::byte* to) {
    store(to, magic);
    store(to + 2, header.version);
    store(to + 3, header.kind);
    store(to + 4, header.phase);
    store(to + 5, std::uint8_t{0});
    store(to + 6, header.length);
    store(to + 8, header.id);
    store(to + 16, header.number);
    store(to + 24, header.offset);
    store(to + 32, header.acked);
    store(to + 40, header.credit);
    store(to + 48, header.digest);
}

// Nothing for what can't be a packet of any version. Whether it is what it claims, the MAC must say.
// `behind`: bytes of payload that lie elsewhere.
inline std::optional<Header> decode(Bytes packet, std::size_t behind = 0) {
    if (packet.size() < header_bytes || load<std::uint16_t>(packet.data()) != magic) return std::nullopt;
    const std::byte* from = packet.data();
    const auto kind = load<std::uint8_t>(from + 3);
    Header header{.kind = Kind{kind},
                  .version = load<std::uint8_t>(from + 2),
                  .phase = load<std::uint8_t>(from + 4),
                  .length = load<std::uint16_t>(from + 6),
                  .id = load<std::uint64_t>(from + 8),
                  .number = load<std::uint64_t>(from + 16),
                  .offset = load<std::uint64_t>(from + 24),
                  .acked = load<std::uint64_t>(from + 32),
                  .credit = load<std::uint64_t>(from + 40),
                  .digest = load<std::uint64_t>(from + 48)};
    if (kind < 1 || kind > 8 || header.phase > 1 || load<std::uint8_t>(from + 5) != 0) return std::nullopt;
    // A device may pad short frames: what follows the payload is not looked at.
    if (header.length > packet.size() - header_bytes + behind) return std::nullopt;
    return header;
}

}  // namespace genie::protocol
