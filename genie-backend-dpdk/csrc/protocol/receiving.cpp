#include "receiving.h"

#include <algorithm>

namespace genie::protocol {

namespace {

constexpr std::size_t most_islands = 4096;  // ranges ahead: a peer that sends single bytes is not kept a map for
constexpr std::size_t most_numbers = 64;
constexpr std::uint64_t most_offset = std::uint64_t{1} << 62;

void carry(std::byte* to, const std::byte* from, std::size_t bytes, Copier* copier) {
    if (copier)
        copier->copy(to, from, bytes);
    else
        std::memcpy(to, from, bytes);
}

}  // namespace

template <class Each>
void Receiving::in_ring(std::uint64_t first, std::uint64_t end, Each each) {
    while (first < end) {
        const std::size_t at = first % window_;
        const std::size_t count = std::min<std::uint64_t>(end - first, window_ - at);
        each(first, ring_.get() + at, count);
        first += count;
    }
}

void Receiving::keep(std::uint64_t first, std::uint64_t end, const std::byte* from, Copier* copier) {
    if (first < target_end_) {
        const std::uint64_t direct = std::min(end, target_end_) - first;
        if (target_) carry(target_ + (first - target_start_), from, direct, copier_ ? copier_ : copier);
        first += direct;
        from += direct;
    }
    in_ring(first, end, [&](std::uint64_t at, std::byte* to, std::size_t count) {
        carry(to, from + (at - first), count, copier);
    });
}

bool Receiving::place(std::uint64_t offset, Bytes payload, Copier* copier) {
    if (offset > most_offset || payload.empty()) return false;
    const std::uint64_t end = offset + payload.size();
    if (end > (target_end_ ? target_end_ : read_) + window_ || (length_ && end > *length_)) return false;
    if (end <= contiguous_) return true;
    if (offset > contiguous_ && ahead_.size() >= most_islands) return false;
    ahead_.gaps(std::max(offset, contiguous_), end, [&](std::uint64_t first, std::uint64_t last) {
        keep(first, last, payload.data() + (first - offset), copier);
    });
    ahead_.add(std::max(offset, contiguous_), end);
    advance();
    return true;
}

void Receiving::advance() {
    while (ahead_.size() && ahead_.map().begin()->first <= contiguous_) {
        contiguous_ = std::max(contiguous_, ahead_.map().begin()->second);
        ahead_.drop_lowest();
    }
    if (target_end_ && contiguous_ >= target_end_) {
        read_ = target_end_;
        target_ = nullptr;
        target_end_ = 0;
    }
}

bool Receiving::finish(std::uint64_t length) {
    if (length_) return *length_ == length;
    const std::uint64_t furthest = ahead_.size() ? std::prev(ahead_.map().end())->second : contiguous_;
    if (length < furthest || length > credit_) return false;
    length_ = length;
    return true;
}

void Receiving::take(Space to) {
    in_ring(read_, read_ + to.size(), [&](std::uint64_t at, const std::byte* from, std::size_t count) {
        std::memcpy(to.data() + (at - read_), from, count);
    });
    read_ += to.size();
}

void Receiving::post(std::byte* target, std::uint64_t bytes, Copier* copier) {
    if (!bytes) return;
    if (target_end_ && !target) {  // with what is dropped already
        target_end_ += bytes;
        return;
    }
    const std::uint64_t end = read_ + bytes;
    auto move = [&](std::uint64_t first, std::uint64_t last) {
        in_ring(first, last, [&](std::uint64_t at, const std::byte* from, std::size_t count) {
            if (target) carry(target + (at - read_), from, count, copier);
        });
    };
    move(read_, std::min(contiguous_, end));
    ahead_.within(read_, end, move);
    target_ = target;
    copier_ = copier;
    target_start_ = read_;
    target_end_ = end;
    advance();
}

void Receiving::forget_unread() {
    ahead_.clear();
    contiguous_ = read_;
}

bool Receiving::note(std::uint64_t number) {
    const bool next = numbers_.size() ? number == std::prev(numbers_.map().end())->second : number == 0;
    numbers_.add(number, number + 1);
    if (numbers_.size() > most_numbers) {
        floor_ = numbers_.map().begin()->second;
        numbers_.drop_lowest();
    }
    return next;
}

}  // namespace genie::protocol
