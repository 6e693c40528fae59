// Messages with contents that are known by their number, written at one side and checked at the other.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>

#include "network.h"

namespace genie::simulator {

[[noreturn]] inline void fail(const char* what) {
    std::printf("failed: %s\n", what);
    std::exit(1);
}

inline void expect(bool holds, const char* what) {
    if (!holds) fail(what);
}

// The same 8 bytes at the same place of the same message, everywhere (splitmix64).
inline std::uint64_t word(std::uint64_t message, std::uint64_t index) {
    std::uint64_t z = (message << 40) + index * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

inline std::vector<std::byte> content(std::uint64_t message, std::size_t size) {
    std::vector<std::byte> bytes((size + 7) / 8 * 8);
    for (std::size_t at = 0; at < bytes.size(); at += 8) store(bytes.data() + at, word(message, at / 8));
    bytes.resize(size);
    return bytes;
}

inline std::size_t random_size(std::mt19937_64& random, std::size_t largest) {
    const double top = std::log2(static_cast<double>(largest));
    return std::min(largest, static_cast<std::size_t>(std::exp2(std::uniform_real_distribution<>(0, top)(random))));
}

// One direction: messages of `sizes`, each behind a word that says its size.
class Flow {
  public:
    Flow(std::vector<std::size_t> sizes, std::uint64_t salt) : sizes_(std::move(sizes)), salt_(salt) {}

    void write(Connection& connection, std::mt19937_64& random) {
        std::erase_if(borrowed_, [](const auto& each) { return each.second.expired(); });
        while (written_ < sizes_.size() && connection.sending().end() - connection.sending().acked() < 32 << 20) {
            const std::uint64_t size = sizes_[written_];
            connection.write(Segment::copy(std::as_bytes(std::span(&size, 1))));
            auto bytes = content(salt_ + written_, size);
            if (random() % 2) {
                connection.write(Segment::copy(bytes));
            } else {
                borrowed_.emplace_back(std::move(bytes), std::weak_ptr<Segment>());
                auto segment = Segment::borrow(borrowed_.back().first);
                borrowed_.back().second = segment;
                connection.write(std::move(segment));
            }
            ++written_;
        }
    }

    void read(Connection& connection, std::mt19937_64& random) {
        check(connection.receiving(), random);
        connection.was_read();
    }

    bool done() const { return checked_ == sizes_.size(); }
    bool returned() const {
        return std::all_of(borrowed_.begin(), borrowed_.end(), [](const auto& each) { return each.second.expired(); });
    }
    std::uint64_t bytes() const { return bytes_; }

  private:
    void check(Receiving& in, std::mt19937_64& random) {
        while (checked_ < sizes_.size() && !in.posted()) {
            if (!body_) {
                if (in.readable() < 8) return;
                std::uint64_t size = 0;
                in.take(std::as_writable_bytes(std::span(&size, 1)));
                expect(size == sizes_[checked_], "a message's size is what was sent");
                memory_.assign(size, std::byte{0});
                filled_ = 0;
                body_ = true;
                if (random() % 2) {
                    in.post(memory_.data(), size);
                    filled_ = size;
                    if (in.posted()) return;
                }
            }
            if (filled_ < memory_.size()) {
                const std::size_t count = std::min(in.readable(), memory_.size() - filled_);
                if (!count) return;
                in.take(Space(memory_).subspan(filled_, count));
                filled_ += count;
                if (filled_ < memory_.size()) continue;
            }
            expect(memory_ == content(salt_ + checked_, memory_.size()), "a message's bytes are what was sent");
            bytes_ += memory_.size();
            body_ = false;
            ++checked_;
        }
    }

    std::vector<std::size_t> sizes_;
    std::uint64_t salt_;
    std::size_t written_ = 0, checked_ = 0;
    std::deque<std::pair<std::vector<std::byte>, std::weak_ptr<Segment>>> borrowed_;
    std::vector<std::byte> memory_;
    std::size_t filled_ = 0;
    bool body_ = false;
    std::uint64_t bytes_ = 0;
};

}  // namespace genie::simulator
