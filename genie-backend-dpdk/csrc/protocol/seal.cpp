#include "seal.h"

#include <sodium.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <stdexcept>
#include <string_view>

namespace genie::protocol {

namespace {

unsigned char* raw(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }
const unsigned char* raw(const std::byte* bytes) { return reinterpret_cast<const unsigned char*>(bytes); }

void start_sodium() {
    static const int started = sodium_init();
    if (started < 0) throw std::runtime_error("libsodium finds no source of randomness");
}

}  // namespace

Seal::Seal(Bytes secret) {
    start_sodium();
    static_assert(crypto_shorthash_KEYBYTES == 16 && crypto_shorthash_BYTES == 8);
    // One BLAKE2b for each 64 bytes needed, told apart by a counter.
    std::array<std::byte, 256> stretched;
    for (std::size_t block = 0; block < stretched.size() / 64; ++block) {
        const auto counter = static_cast<unsigned char>(block);
        crypto_generichash(raw(stretched.data() + 64 * block), 64, &counter, 1, raw(secret.data()), secret.size());
    }
    std::memcpy(mac_.data(), stretched.data(), mac_.size());
    std::memcpy(payload_.data(), stretched.data() + 64, payload_.size());
}

Seal Seal::open() {
    static constexpr std::string_view known = "genie dpdk protocol, handshake";
    return Seal(std::as_bytes(std::span(known)));
}

Seal Seal::derived(const char* purpose, Bytes secret, const Nonce& client, const Nonce& server) {
    start_sodium();
    const std::string_view label = purpose;
    std::array<std::byte, 32> key;
    crypto_generichash_state state;
    crypto_generichash_init(&state, secret.empty() ? nullptr : raw(secret.data()), secret.size(), key.size());
    crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(label.data()), label.size());
    crypto_generichash_update(&state, raw(client.data()), client.size());
    crypto_generichash_update(&state, raw(server.data()), server.size());
    crypto_generichash_final(&state, raw(key.data()), key.size());
    return Seal(key);
}

std::uint64_t Seal::digest(Bytes payload) const {
    if (payload.empty() || !digests_) return 0;
    return XXH3_64bits_withSecret(payload.data(), payload.size(), payload_.data(), payload_.size());
}

void Seal::put(Header header, Bytes payload, std::byte* to) const {
    header.length = static_cast<std::uint16_t>(payload.size());
    header.digest = digest(payload);
    encode(header, to);
    crypto_shorthash(raw(to + sealed_bytes), raw(to), sealed_bytes, raw(mac_.data()));
}

bool Seal::holds(const Header& header, Bytes packet) const {
    return header_holds(packet) && payload_holds(header, packet.subspan(header_bytes, header.length));
}

bool Seal::header_holds(Bytes packet) const {
    std::array<std::byte, 8> due;
    crypto_shorthash(raw(due.data()), raw(packet.data()), sealed_bytes, raw(mac_.data()));
    return sodium_memcmp(due.data(), packet.data() + sealed_bytes, due.size()) == 0;
}

bool Seal::payload_holds(const Header& header, Bytes payload) const { return digest(payload) == header.digest; }

void random_bytes(Space to) {
    start_sodium();
    randombytes_buf(to.data(), to.size());
}

}  // namespace genie::protocol
