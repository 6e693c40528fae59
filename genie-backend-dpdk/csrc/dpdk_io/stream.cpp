#include "stream.h"

#include <algorithm>
#include <vector>

namespace genie::dpdk {

using namespace protocol;

namespace {

constexpr std::size_t worth_borrowing = 64 << 10;  // bytes: less is copied, and sent while the caller goes on
constexpr std::uint64_t most_behind = 4 << 20;  // bytes that were copied and have not arrived
constexpr std::size_t at_once = 1 << 20;  // bytes out of a device's memory

}  // namespace

bool Stream::broken() const {
    return closed_ || connection_->state() == State::closed || connection_->peer_finished();
}

// What is wanted will never be there.
bool Stream::ended(std::uint64_t wanted) const {
    return closed_ || connection_->state() == State::closed || connection_->receiving().ends_within(wanted);
}

// What is written of a message, and what still refers to its memory.
class Stream::Message {
  public:
    Message(Stream& stream, std::span<const Part> parts) : stream_(stream), parts_(parts) {}

    Outcome write(std::unique_lock<std::mutex>& lock, Time patience, const Interrupted& interrupted) {
        for (; at_ < parts_.size(); ++at_, done_ = 0) {
            const Part& part = parts_[at_];
            if (part.device && !borrow(part)) {
                flush();
                const Outcome outcome = stage(part, lock, patience, interrupted);
                if (outcome != Outcome::done) return outcome;
            } else if (!part.device && part.bytes.size() < worth_borrowing) {
                small_.insert(small_.end(), part.bytes.begin(), part.bytes.end());
            } else if (!part.device) {
                push(Segment::borrow(part.bytes));
            }
        }
        flush();
        return Outcome::done;
    }

    // All of it, at once, in memory of its own.
    void keep(std::unique_lock<std::mutex>& lock) {
        write(lock, 0, nullptr);
        for (const auto& each : borrowed_)
            if (auto segment = each.lock()) segment->keep();
    }

    bool returned() const {
        return std::all_of(borrowed_.begin(), borrowed_.end(), [](const auto& each) { return each.expired(); });
    }

  private:
    void push(std::shared_ptr<Segment> segment) {
        flush();
        borrowed_.push_back(segment);
        stream_.connection_->write(std::move(segment));
    }

    void flush() {
        if (!small_.empty()) stream_.connection_->write(Segment::copy(small_));
        small_.clear();
    }

    // Packets may lie in a device's memory where the host reads it too, for their digests, and DPDK knows it.
    bool borrow(const Part& part) {
        if (done_ || part.bytes.size() < worth_borrowing || !part.device->device().memory().readable()) return false;
        const auto range = gpumem::range_of(part.bytes.data(), part.bytes.size());
        auto segment = Segment::borrow(part.bytes);
        try {
            auto lease = gpumem::registrations().acquire(stream_.port_->number(), range);
            if (!lease || !lease->whole(range)) return false;
            using Held = std::pair<std::shared_ptr<gpumem::Allocation>, gpumem::Registrations::Lease>;
            segment->memory = std::make_shared<Held>(part.device, std::move(*lease));
        } catch (const std::runtime_error&) {  // DPDK, or the port's device, does not take it
            return false;
        }
        push(std::move(segment));
        return true;
    }

    // Through the host's memory, little by little. Without `interrupted` nothing is waited for.
    Outcome stage(const Part& part, std::unique_lock<std::mutex>& lock, Time patience, const Interrupted& interrupted) {
        Connection& connection = *stream_.connection_;
        Sending& sending = connection.sending();
        gpumem::Memory& memory = part.device->device().memory();
        const auto acked = [&] { return sending.acked(); };
        const auto room = [&] { return stream_.broken() || sending.end() - sending.acked() < most_behind; };
        while (done_ < part.bytes.size()) {
            if (interrupted && !stream_.port_->wait(lock, stream_.out_, room, acked, patience, interrupted))
                return Outcome::late;
            const std::size_t count = std::min(part.bytes.size() - done_, at_once);
            auto segment = std::make_shared<Segment>();
            segment->own.resize(count);
            segment->data = segment->own.data();
            segment->size = count;
            lock.unlock();
            memory.copy(segment->own.data(), part.bytes.data() + done_, count);
            const bool copied = memory.finish();
            lock.lock();
            if (!copied) connection.cut_off(End::device);
            if (stream_.broken()) return Outcome::ended;
            connection.write(std::move(segment));
            done_ += count;
            stream_.port_->send_now();
        }
        return Outcome::done;
    }

    Stream& stream_;
    std::span<const Part> parts_;
    std::size_t at_ = 0, done_ = 0;
    std::vector<std::weak_ptr<Segment>> borrowed_;
    std::vector<std::byte> small_;
};

Outcome Stream::opened(Time patience, const Interrupted& interrupted) {
    std::unique_lock lock(port_->mutex());
    port_->send_now();
    const auto ready = [this] { return connection_->state() != State::connecting; };
    if (!port_->wait(lock, in_, ready, nullptr, patience, interrupted)) return Outcome::late;
    return connection_->established() ? Outcome::done : Outcome::ended;
}

Outcome Stream::send(std::span<const Part> parts, Time patience, const Interrupted& interrupted) {
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
    Message message(*this, parts);
    try {
        Outcome outcome = message.write(lock, patience, interrupted);
        if (outcome == Outcome::done) {
            port_->send_now();
            if (message.returned()) return Outcome::done;
            const auto over = [&] { return message.returned() || broken(); };
            if (!port_->wait(lock, out_, over, acked, patience, interrupted)) outcome = Outcome::late;
            if (message.returned()) return Outcome::done;
        }
        // Late; or by another thread, in the middle of this message.
        if (outcome == Outcome::late || closed_) connection_->abort();
        port_->send_now();
        port_->let_go();
        return outcome == Outcome::late ? outcome : Outcome::ended;
    } catch (...) {  // interrupted: the message goes out whole all the same
        if (!lock.owns_lock()) lock.lock();
        try {
            message.keep(lock);
        } catch (const std::bad_alloc&) {
            connection_->abort();
        }
        port_->let_go();  // only now: the rest may have sent some more out of the caller's memory
        port_->send_now();
        throw;
    }
}

Outcome Stream::take(Space to, Time patience, const Interrupted& interrupted) {
    std::unique_lock lock(port_->mutex());
    Receiving& in = connection_->receiving();
    const auto ready = [&] { return in.readable() >= to.size() || ended(to.size()); };
    if (!port_->wait(lock, in_, ready, nullptr, patience, interrupted)) return Outcome::late;
    if (closed_ || in.readable() < to.size()) return Outcome::ended;
    in.take(to);
    ring();
    connection_->was_read();
    if (connection_->owes_ack_now()) port_->send_now();
    return Outcome::done;
}

Outcome Stream::fill(Space to, Time patience, const Interrupted& interrupted, gpumem::Memory* device) {
    std::unique_lock lock(port_->mutex());
    Receiving& in = connection_->receiving();
    if (closed_) return Outcome::ended;
    in.post(to.data(), to.size(), device);
    if (device && !device->finish()) connection_->cut_off(End::device);
    ring();
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
    ring();
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

int Stream::fd() {
    std::unique_lock lock(port_->mutex());
    if (!bell_ && !closed_) {
        bell_.emplace();
        port_->follow(this, [this] { ring(); });
        ring();
    }
    return bell_ ? bell_->fd() : -1;
}

void Stream::ring() {
    if (!bell_) return;
    const bool news = connection_->receiving().readable() || broken();
    if (news && !rung_) bell_->set();
    if (!news && rung_) bell_->clear();
    rung_ = news;
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
    port_->follow(this, nullptr);
}

End Stream::end() {
    std::unique_lock lock(port_->mutex());
    if (closed_) return End::here;
    if (connection_->end() != End::none) return connection_->end();
    return connection_->peer_finished() ? End::peer : End::none;
}

}  // namespace genie::dpdk
