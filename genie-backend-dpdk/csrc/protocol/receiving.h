// The way in of one connection: where bytes that come out of order are placed, and which packets have come.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "elsewhere.h"
#include "header.h"
#include "ranges.h"

namespace genie::protocol {

// A stream's bytes are placed by their offset, once: in the memory that was posted for them, else in a ring of
// `window` bytes. The peer's credit ends a window after what was read or posted, so that there is always a place.
class Receiving {
  public:
    explicit Receiving(std::size_t window) : window_(window), ring_(new std::byte[window]) {}

    // False, and nothing is kept, for what no peer within its credit sends.
    // `copier`: of the device in whose memory the payload lies.
    bool place(std::uint64_t offset, Bytes payload, Copier* copier = nullptr);
    bool finish(std::uint64_t length);  // the stream ends there

    std::uint64_t contiguous() const { return contiguous_; }
    std::size_t readable() const { return target_end_ ? 0 : static_cast<std::size_t>(contiguous_ - read_); }
    bool over() const { return length_ && !target_end_ && read_ == *length_; }
    bool finished() const { return length_.has_value(); }
    // Whether the stream ends before `bytes` more have come.
    bool ends_within(std::uint64_t bytes) const { return length_ && *length_ - read_ < bytes; }

    void take(Space to);  // at most what is readable
    // The next bytes of the stream go there, without a ring between; with no memory they are dropped, after what is
    // still to come of what was withdrawn.
    // `copier`: of the device in whose memory that is.
    void post(std::byte* target, std::uint64_t bytes, Copier* copier = nullptr);
    void withdraw() { target_ = nullptr; }  // what is still to come of what was posted is dropped
    bool posted() const { return target_end_ != 0; }
    std::uint64_t missing() const { return target_end_ ? target_end_ - contiguous_ : 0; }

    // What came under an older key, and was not read: it was not the peer's.
    void forget_unread();

    std::uint64_t credit() const { return std::max(credit_, (target_end_ ? target_end_ : read_) + window_); }
    std::uint64_t promise() { return credit_ = credit(); }
    bool owes_credit() const { return credit() - credit_ >= window_ / 4; }

    bool fresh(std::uint64_t number) const { return number >= floor_ && !numbers_.contains(number); }
    // Whether it came in order, right after the one before.
    bool note(std::uint64_t number);
    const Ranges& numbers() const { return numbers_; }

  private:
    void keep(std::uint64_t first, std::uint64_t end, const std::byte* from, Copier* copier);
    template <class Each>
    void in_ring(std::uint64_t first, std::uint64_t end, Each each);
    void advance();

    std::size_t window_;
    std::unique_ptr<std::byte[]> ring_;
    std::uint64_t read_ = 0, contiguous_ = 0, credit_ = 0;
    Ranges ahead_;  // what came beyond `contiguous_`
    std::byte* target_ = nullptr;
    Copier* copier_ = nullptr;  // of the target
    std::uint64_t target_start_ = 0, target_end_ = 0;  // the end is 0 when nothing is posted
    std::optional<std::uint64_t> length_;
    Ranges numbers_;
    std::uint64_t floor_ = 0;  // numbers below are taken to have come
};

}  // namespace genie::protocol
