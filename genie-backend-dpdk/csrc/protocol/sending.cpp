#include "sending.h"

#include <algorithm>

namespace genie::protocol {

std::shared_ptr<Segment> Segment::copy(Bytes bytes) {
    auto segment = std::make_shared<Segment>();
    segment->own.assign(bytes.begin(), bytes.end());
    segment->data = segment->own.data();
    segment->size = bytes.size();
    return segment;
}

std::shared_ptr<Segment> Segment::borrow(Bytes bytes) {
    auto segment = std::make_shared<Segment>();
    segment->data = bytes.data();
    segment->size = bytes.size();
    return segment;
}

void Segment::keep() {
    own.assign(data, data + size);
    data = own.data();
}

void Sending::push(std::shared_ptr<Segment> segment) {
    if (!segment->size) return;
    segment->offset = end_;
    end_ += segment->size;
    segments_.push_back(std::move(segment));
}

void Sending::abandon() {
    segments_.clear();
    again_.clear();
    for (auto& sent : sent_)
        if (sent.kind == Kind::data && sent.fate == Fate::flying) {
            sent.fate = Fate::lost;
            --flying_;
            flying_bytes_ -= sent.length + header_bytes;
        }
    acked_ = end_ = next_;
}

void Sending::fill(Piece& piece, std::size_t length) {
    auto after = std::upper_bound(segments_.begin(), segments_.end(), piece.offset,
                                  [](std::uint64_t offset, const auto& each) { return offset < each->offset; });
    auto at = std::prev(after);
    const std::size_t start = piece.offset - (*at)->offset;
    if ((*at)->size - start >= length) {
        piece.bytes = Bytes((*at)->data + start, length);
        piece.segment = *at;
        return;
    }
    std::size_t done = 0;
    for (std::size_t from = start; done < length; ++at, from = 0) {
        const std::size_t count = std::min((*at)->size - from, length - done);
        std::memcpy(scratch_.data() + done, (*at)->data + from, count);
        done += count;
    }
    piece.bytes = Bytes(scratch_.data(), length);
    piece.segment = nullptr;
}

bool Sending::pick(Piece& piece, bool probing) {
    while (!again_.empty() && again_.front().first + again_.front().second <= acked_) again_.pop_front();
    const bool room = probing || flying_bytes_ + mss_ + header_bytes <= window_.bytes();
    if (!room) return false;
    if (!again_.empty()) {
        auto [offset, length] = again_.front();
        again_.pop_front();
        if (offset < acked_) {  // the first part of it has come by now
            length -= static_cast<std::uint32_t>(acked_ - offset);
            offset = acked_;
        }
        piece = Piece{.offset = offset, .bytes = {}, .segment = nullptr, .again = true};
        fill(piece, length);
        return true;
    }
    std::uint64_t end = std::min(end_, credit_);
    if (next_ < boundary_) end = std::min(end, boundary_);
    if (next_ >= end) return false;
    piece = Piece{.offset = next_, .bytes = {}, .segment = nullptr, .again = false};
    fill(piece, std::min<std::uint64_t>(mss_, end - next_));
    next_ += piece.bytes.size();
    return true;
}

bool Sending::resend_newest(Piece& piece) {
    for (auto at = sent_.rbegin(); at != sent_.rend(); ++at) {
        if (at->fate != Fate::flying || at->kind != Kind::data || covered(*at)) continue;
        const std::uint64_t offset = std::max(at->offset, acked_);
        piece = Piece{.offset = offset, .bytes = {}, .segment = nullptr, .again = true};
        fill(piece, at->offset + at->length - offset);
        return true;
    }
    return false;
}

void Sending::sent(std::uint64_t number, Time now, Kind kind, std::uint64_t offset, std::size_t length, bool again) {
    const bool answered = kind == Kind::data || kind == Kind::ping || kind == Kind::fin;
    if (sent_.empty()) base_ = number;
    sent_.push_back(Sent{now, offset, static_cast<std::uint32_t>(length), kind,
                         answered ? Fate::flying : Fate::settled, again});
    if (kind == Kind::fin) fin_lost_ = false;
    if (again) ++resent_;
    if (answered) {
        ++flying_;
        flying_bytes_ += length + header_bytes;
        last_sent_ = now;
    } else {
        trim();
    }
}

void Sending::settle(Sent& sent, std::uint64_t number, std::size_t& bytes) {
    sent.fate = Fate::settled;
    --flying_;
    flying_bytes_ -= sent.length + header_bytes;
    bytes += sent.length + header_bytes;
    newest_settled_ = std::max(newest_settled_, number);
    newest_settled_at_ = std::max(newest_settled_at_, sent.at);
    if (sent.kind == Kind::fin) fin_settled_ = true;
}

void Sending::lose(Sent& sent) {
    sent.fate = Fate::lost;
    --flying_;
    flying_bytes_ -= sent.length + header_bytes;
    if (sent.kind == Kind::data && !covered(sent)) again_.emplace_back(sent.offset, sent.length);
    if (sent.kind == Kind::fin) fin_lost_ = !fin_settled_;
}

void Sending::trim() {
    while (!sent_.empty() && sent_.front().fate != Fate::flying) {
        sent_.pop_front();
        ++base_;
    }
}

bool Sending::acknowledged(std::uint64_t all_before, std::uint64_t credit, std::span<const Numbers> numbers,
                           Time delay, Time now) {
    const std::uint64_t unsent = base_ + sent_.size();
    if (all_before > next_) return false;
    for (const Numbers& range : numbers)
        if (range.first > range.last || range.last >= unsent) return false;
    credit_ = std::max(credit_, credit);
    if (all_before > acked_) {
        acked_ = all_before;
        while (!segments_.empty() && segments_.front()->offset + segments_.front()->size <= acked_)
            segments_.pop_front();
    }
    std::size_t bytes = 0;
    const Sent* newest = nullptr;
    for (const Numbers& range : numbers) {
        if (range.last < base_) continue;
        for (std::uint64_t number = std::max(range.first, base_); number <= range.last && number < unsent; ++number) {
            Sent& sent = sent_[number - base_];
            if (sent.fate != Fate::flying) continue;
            settle(sent, number, bytes);
            if (number == numbers.front().last) newest = &sent;
        }
    }
    if (newest) trip_.sample(now - newest->at, delay);
    while (!sent_.empty()) {
        Sent& front = sent_.front();
        if (front.fate == Fate::flying && covered(front)) {
            settle(front, base_, bytes);
            // Of what was sent once it is plain which copy came.
            if (!front.again && numbers.empty()) trip_.sample(now - front.at, 0);
        }
        if (front.fate == Fate::flying) break;
        sent_.pop_front();
        ++base_;
    }
    if (bytes) window_.acked(bytes, trip_, now, flying_bytes_);
    find_lost(now);
    return true;
}

void Sending::find_lost(Time now) {
    loss_due_ = 0;
    bool any = false;
    const Time patience = trip_.reordering();
    std::uint64_t number = base_;
    for (Sent& sent : sent_) {
        if (sent.at > newest_settled_at_ || number >= newest_settled_) break;
        ++number;
        if (sent.fate != Fate::flying) continue;
        if (sent.at + patience <= now) {
            lose(sent);
            any = true;
        } else {
            loss_due_ = sent.at + patience;  // the rest were sent later
            break;
        }
    }
    if (any) window_.lost(trip_, now);
    trim();
}

void Sending::give_up_flying(Time now) {
    for (Sent& sent : sent_)
        if (sent.fate == Fate::flying) lose(sent);
    loss_due_ = 0;
    window_.timed_out(now);
    trim();
}

}  // namespace genie::protocol
