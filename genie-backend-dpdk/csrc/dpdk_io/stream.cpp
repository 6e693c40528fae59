#include "stream.h"

#include <vector>

namespace genie::dpdk {

using namespace protocol;

namespace {

constexpr std::size_t worth_borrowing = 64 << 10;  // bytes: less is copied, and sent while the caller goes on
constexpr std::uint64_t most_behind = 4 << 20;  // bytes that were copied and have not arrived

}  // namespace

bool Stream::broken() const {
    return closed_ || connection_->state() == State::closed || connection_->peer_finished();
}

// What is wanted will never be there.
bool Stream::ended(std::uint64_t wanted) const {
    return closed_ || connection_->state() == State::closed || connection_->receiving().ends_within(wanted);
}

Outcome Stream::opened(Time patience, const Interrupted& interrupted) {
    std::unique_lock lock(port_->mutex());
    port_->send_now();
    const auto ready = [this] { return connection_->state() != State::connecting; };
    if (!port_->wait(lock, in_, ready, nullptr, patience, interrupted)) return Outcome::late;
    return connection_->established() ? Outcome::done : Outcome::ended;
}

Outcome Stream::send(std::span<const Bytes> parts, Time patience, const Interrupted& interrupted) {
    std::unique_lock lock(port_->mutex());
    Sending& sending = connection_->sending();
    const auto acked = [&] { return sending.acked(); };
    const auto room = [&] { return broken() || sending.end() - sending.acked() < most_behind; };
    if (!port_->wait(lock, out_, room, acked, patience, interrupted)) {
        connection_->abort();
        return Outcome::late;
    }
    if (broken()) return Outcome::ended;
    ++begun_;
    std::vector<std::weak_ptr<Segment>> borrowed;
    std::vector<std::byte> small;
    const auto write_small = [&] {
        if (!small.empty()) connection_->write(Segment::copy(small));
        small.clear();
    };
    for (const Bytes& part : parts) {
        if (part.size() < worth_borrowing) {
            small.insert(small.end(), part.begin(), part.end());
            continue;
        }
        write_small();
        auto segment = Segment::borrow(part);
        borrowed.push_back(segment);
        connection_->write(std::move(segment));
    }
    write_small();
    port_->send_now();
    if (borrowed.empty()) return Outcome::done;

    const auto returned = [&] {
        for (const auto& each : borrowed)
            if (!each.expired()) return false;
        return true;
    };
    try {
        if (port_->wait(lock, out_, [&] { return returned() || broken(); }, acked, patience, interrupted)) {
            if (returned()) return Outcome::done;
            if (closed_) connection_->abort();  // by another thread, in the middle of this message
            port_->send_now();
            port_->let_go();
            return Outcome::ended;
        }
    } catch (...) {  // interrupted: the message goes out whole all the same
        if (!lock.owns_lock()) lock.lock();
        port_->let_go();
        for (const auto& each : borrowed)
            if (auto segment = each.lock()) segment->keep();
        throw;
    }
    connection_->abort();
    port_->send_now();
    port_->let_go();
    return Outcome::late;
}

Outcome Stream::take(Space to, Time patience, const Interrupted& interrupted) {
    std::unique_lock lock(port_->mutex());
    Receiving& in = connection_->receiving();
    const auto ready = [&] { return in.readable() >= to.size() || ended(to.size()); };
    if (!port_->wait(lock, in_, ready, nullptr, patience, interrupted)) return Outcome::late;
    if (closed_ || in.readable() < to.size()) return Outcome::ended;
    in.take(to);
    connection_->was_read();
    if (connection_->owes_ack_now()) port_->send_now();
    return Outcome::done;
}

Outcome Stream::fill(Space to, Time patience, const Interrupted& interrupted) {
    std::unique_lock lock(port_->mutex());
    Receiving& in = connection_->receiving();
    if (closed_) return Outcome::ended;
    in.post(to.data(), to.size());
    connection_->was_read();
    port_->send_now();
    const auto ready = [&] { return !in.posted() || ended(in.missing()); };
    try {
        if (!port_->wait(lock, in_, ready, [&] { return in.contiguous(); }, patience, interrupted)) {
            in.withdraw();
            return Outcome::late;
        }
    } catch (...) {
        if (!lock.owns_lock()) lock.lock();
        in.withdraw();
        throw;
    }
    if (!in.posted()) return Outcome::done;
    in.withdraw();
    return Outcome::ended;
}

void Stream::skip(std::uint64_t bytes) {
    std::unique_lock lock(port_->mutex());
    connection_->receiving().post(nullptr, bytes);
    connection_->was_read();
    port_->send_now();
}

Outcome Stream::skipped(Time patience, const Interrupted& interrupted) {
    std::unique_lock lock(port_->mutex());
    Receiving& in = connection_->receiving();
    const auto ready = [&] { return !in.posted() || ended(in.missing()); };
    if (!port_->wait(lock, in_, ready, [&] { return in.contiguous(); }, patience, interrupted)) return Outcome::late;
    return in.posted() ? Outcome::ended : Outcome::done;
}

bool Stream::hung_up() {
    std::unique_lock lock(port_->mutex());
    return broken();
}

void Stream::key(Bytes secret) {
    std::unique_lock lock(port_->mutex());
    connection_->key(secret);
}

void Stream::close() {
    std::unique_lock lock(port_->mutex());
    if (closed_) return;
    closed_ = true;
    connection_->receiving().withdraw();
    connection_->close(port_->now());
    port_->send_now();
    port_->tell();
}

End Stream::end() {
    std::unique_lock lock(port_->mutex());
    if (closed_) return End::here;
    if (connection_->end() != End::none) return connection_->end();
    return connection_->peer_finished() ? End::peer : End::none;
}

}  // namespace genie::dpdk
