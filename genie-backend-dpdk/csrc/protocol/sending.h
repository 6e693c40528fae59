// The way out of one connection: what is still to be sent, what is on its way, and what of that was lost.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "header.h"
#include "pace.h"

namespace genie::protocol {

// A piece of the stream. Whoever holds one may still read its memory.
struct Segment {
    const std::byte* data = nullptr;
    std::size_t size = 0;
    std::uint64_t offset = 0;  // in the stream
    std::vector<std::byte> own;  // the bytes themselves, where they were copied
    std::shared_ptr<const void> memory;  // of a device, which it is a piece of, and which DPDK knows

    static std::shared_ptr<Segment> copy(Bytes bytes);
    static std::shared_ptr<Segment> borrow(Bytes bytes);  // which must stay as they are until it is gone, or keeps them
    void keep();
};

struct Numbers {  // of packets, both included
    std::uint64_t first = 0, last = 0;
};

// One DATA packet's worth of the stream.
struct Piece {
    std::uint64_t offset = 0;
    Bytes bytes;
    std::shared_ptr<Segment> segment;  // none where the bytes had to be put together, and last until the next piece
    bool again = false;
};

// Packets are numbered and a number is never used twice, so an acknowledgement always says which copy came (RFC 9002).
// A packet is lost when one sent later came and about a round trip has passed since (RACK, RFC 8985): an order other
// than that of sending costs nothing.
class Sending {
  public:
    Sending(std::size_t mss, Time queue_allowance) : mss_(mss), window_(mss, queue_allowance), scratch_(mss) {}

    void push(std::shared_ptr<Segment> segment);
    void abandon();  // nothing of the stream is sent any more

    // The next piece that may be sent now. `probing` lifts the window.
    bool pick(Piece& piece, bool probing);
    bool resend_newest(Piece& piece);  // a tail-loss probe
    void sent(std::uint64_t number, Time now, Kind kind, std::uint64_t offset, std::size_t length, bool again);

    // False, and nothing changes, for what acknowledges more than was sent.
    bool acknowledged(std::uint64_t all_before, std::uint64_t credit, std::span<const Numbers> numbers, Time delay,
                      Time now);
    void find_lost(Time now);
    void give_up_flying(Time now);  // the timeout: all that is on its way is taken to be lost

    // Pieces never cross it: what is before is protected by another key than what comes after.
    void set_boundary() { boundary_ = end_; }
    std::uint64_t boundary() const { return boundary_; }

    std::uint64_t end() const { return end_; }
    std::uint64_t acked() const { return acked_; }
    bool all_sent() const { return next_ == end_ && again_.empty(); }
    bool all_acked() const { return acked_ == end_; }
    bool starved() const { return next_ < end_ && next_ >= credit_ && again_.empty() && !flying_; }
    bool anything_flying() const { return flying_ > 0; }
    bool has_segments() const { return !segments_.empty(); }
    Time loss_due() const { return loss_due_; }
    Time last_sent() const { return last_sent_; }
    bool fin_settled() const { return fin_settled_; }
    bool fin_lost() const { return fin_lost_; }
    const RoundTrip& trip() const { return trip_; }
    std::uint64_t resent() const { return resent_; }
    std::uint64_t credit() const { return credit_; }
    void set_credit(std::uint64_t credit) { credit_ = credit; }

  private:
    enum class Fate : std::uint8_t { flying, settled, lost };
    struct Sent {
        Time at;
        std::uint64_t offset;
        std::uint32_t length;
        Kind kind;
        Fate fate;
        bool again;
    };

    bool covered(const Sent& sent) const { return sent.kind == Kind::data && sent.offset + sent.length <= acked_; }
    void settle(Sent& sent, std::uint64_t number, std::size_t& bytes);
    void lose(Sent& sent);
    void fill(Piece& piece, std::size_t length);
    void trim();

    std::size_t mss_;
    Window window_;
    RoundTrip trip_;
    std::deque<std::shared_ptr<Segment>> segments_;
    std::vector<std::byte> scratch_;
    std::uint64_t end_ = 0, next_ = 0, acked_ = 0, credit_ = 0, boundary_ = 0;
    std::deque<Sent> sent_;  // by number, from `base_`
    std::uint64_t base_ = 0;
    std::deque<std::pair<std::uint64_t, std::uint32_t>> again_;  // lost: offset, length
    std::size_t flying_ = 0, flying_bytes_ = 0;
    std::uint64_t newest_settled_ = 0;
    Time newest_settled_at_ = -1, loss_due_ = 0, last_sent_ = 0;
    std::uint64_t resent_ = 0;
    bool fin_settled_ = false, fin_lost_ = false;
};

}  // namespace genie::protocol
