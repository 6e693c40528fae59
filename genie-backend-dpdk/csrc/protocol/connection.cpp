#include "connection.h"

#include <algorithm>
#include <limits>

namespace genie::protocol {

namespace {

constexpr Time never = std::numeric_limits<Time>::max();
constexpr unsigned ack_every = 8;  // packets
constexpr std::size_t most_ranges = 32;
constexpr unsigned most_backoff = 8;

std::uint64_t random_id() {
    std::uint64_t id = 0;
    while (!id) random_bytes(std::as_writable_bytes(std::span(&id, 1)));
    return id;
}

}  // namespace

void Offer::encode(std::byte* to) const {
    store(to, oldest);
    store(to + 1, newest);
    store(to + 2, mss);
    store(to + 4, flags);
    store(to + 8, credit);
    store(to + 16, id);
    std::memcpy(to + 24, nonce.data(), nonce.size());
}

std::optional<Offer> Offer::decode(Bytes payload) {
    if (payload.size() < bytes) return std::nullopt;
    Offer offer{.oldest = load<std::uint8_t>(payload.data()),
                .newest = load<std::uint8_t>(payload.data() + 1),
                .mss = load<std::uint16_t>(payload.data() + 2),
                .flags = load<std::uint32_t>(payload.data() + 4),
                .credit = load<std::uint64_t>(payload.data() + 8),
                .id = load<std::uint64_t>(payload.data() + 16)};
    std::memcpy(offer.nonce.data(), payload.data() + 24, offer.nonce.size());
    if (offer.mss < 64 || !offer.id || offer.oldest > offer.newest) return std::nullopt;
    return offer;
}

Connection::Connection(const Options& options, Time now, std::uint16_t mss)
    : options_(options), id_(random_id()), mss_(mss), receiving_(options.window), sending_(mss, options.queue_allowance),
      hello_wait_(4 * options.least_timeout), started_(now), heard_at_(now), version_(options.newest) {
    // An idle peer is asked, more than once, before its silence counts.
    options_.keep_alive = std::min(options.keep_alive, options.peer_deadline / 4);
}

Seal Connection::hello_of(const Ticket& ticket) { return Seal::derived("ticket", ticket.secret, {}, {}); }

std::shared_ptr<Connection> Connection::to_peer(const Options& options, Time now, const Ticket* ticket) {
    std::shared_ptr<Connection> made(new Connection(options, now, options.mss));
    made->take(ticket);
    made->state_ = State::connecting;
    made->says_hello_ = true;
    random_bytes(made->client_nonce_);
    return made;
}

std::shared_ptr<Connection> Connection::from_peer(const Options& options, const Offer& offer, Time now,
                                                  const Ticket* ticket) {
    std::shared_ptr<Connection> made(new Connection(options, now, std::min(options.mss, offer.mss)));
    made->take(ticket);
    made->state_ = State::accepting;
    made->says_hello_ = true;
    made->peer_id_ = offer.id;
    made->client_nonce_ = offer.nonce;
    made->version_ = std::min(options.newest, offer.newest);
    random_bytes(made->server_nonce_);
    made->digests_ = options.digests || !(offer.flags & Offer::no_digests);
    made->met();
    made->sending_.set_credit(offer.credit);
    return made;
}

void Connection::take(const Ticket* ticket) {
    if (!ticket) return;
    ticket_ = *ticket;
    hello_ = hello_of(*ticket);
}

void Connection::met() {
    if (!ticket_) {
        seals_[0] = derived("handshake", {});
        return;
    }
    seals_[1] = derived("session", ticket_->secret);
    keyed_ = peer_keyed_ = true;
}

Seal Connection::derived(const char* purpose, Bytes secret) const {
    const Seal seal = Seal::derived(purpose, secret, client_nonce_, server_nonce_);
    return digests_ ? seal : seal.undigested();
}

// --- in -------------------------------------------------------------------------------------------

void Connection::heard(const Header& header, Bytes packet, Time now, const Elsewhere& rest) {
    if (header.kind == Kind::accept) return heard_accept(header, packet, now);
    if (header.kind == Kind::init) {  // again: the ACCEPT was lost
        if (state_ == State::accepting && hello_.holds(header, packet)) says_hello_ = true;
        return;
    }
    const auto& seal = seals_[header.phase];
    const Bytes payload = rest.payload ? Bytes(rest.payload, header.length) : packet.subspan(header_bytes, header.length);
    const auto holds = [&] {
        if (!seal->header_holds(packet)) return false;
        // What the host can't read has only the device's word for it: checksums of the wire.
        return (rest.payload && !rest.readable) || seal->payload_holds(header, payload);
    };
    if (!seal || state_ == State::closed || !receiving_.fresh(header.number) || !holds()) {
        // What came before is acknowledged again: perhaps that was lost.
        if (seal && state_ != State::closed && !receiving_.fresh(header.number) && header.kind != Kind::ack &&
            holds()) {
            heard_at_ = now;
            ack_now_ = true;
        }
        ++counters_.packets_dropped;
        return;
    }
    if (header.phase == 0 && keyed_ && (peer_keyed_ || header.offset >= key_boundary_ || header.kind == Kind::reset)) {
        if (header.kind == Kind::data && header.offset < key_boundary_) ack_now_ = true;
        ++counters_.packets_dropped;
        return;
    }
    if (!take_acks(header, payload, now)) {
        ++counters_.packets_dropped;
        return;
    }
    if (header.kind == Kind::reset) return finish(End::reset);
    if (header.kind == Kind::data && state_ != State::closing && !receiving_.place(header.offset, payload, rest.copier)) {
        ++counters_.packets_dropped;  // beyond its credit, or we could not keep it: it comes again
        return;
    }
    if (header.kind == Kind::fin && !receiving_.finish(header.offset)) {
        ++counters_.packets_dropped;
        return;
    }
    ++counters_.packets_received;
    counters_.packets_split += rest.payload != nullptr;
    heard_at_ = now;
    if (header.phase == 1) peer_keyed_ = true;
    if (state_ == State::accepting) {
        state_ = State::open;
        says_hello_ = false;
    }
    const bool in_order = receiving_.note(header.number);
    if (header.kind != Kind::ack) {
        if (!unacked_++) ack_due_ = now + options_.ack_delay;
        newest_came_ = now;
        if (!in_order || unacked_ >= ack_every || header.kind != Kind::data) ack_now_ = true;
    }
    if (header.kind == Kind::fin) {
        sending_.abandon();  // who closed reads no more
        owes_fin_ = false;
    }
    if (receiving_.owes_credit()) ack_now_ = true;
}

bool Connection::take_acks(const Header& header, Bytes payload, Time now) {
    std::array<Numbers, most_ranges> numbers;
    std::size_t count = 0;
    Time delay = 0;
    if (header.kind == Kind::ack && !payload.empty()) {
        if (payload.size() < 8 || (payload.size() - 8) % sizeof(Numbers) || payload.size() > ack_space_.size())
            return false;
        count = (payload.size() - 8) / sizeof(Numbers);
        delay = std::min<Time>(load<std::uint32_t>(payload.data()) * microsecond, options_.most_timeout);
        std::memcpy(numbers.data(), payload.data() + 8, count * sizeof(Numbers));
    }
    const std::uint64_t before = sending_.acked(), allowed = sending_.credit();
    if (!sending_.acknowledged(header.acked, header.credit, std::span(numbers.data(), count), delay, now)) return false;
    const bool answered = !sending_.anything_flying() && !sending_.starved();
    if (sending_.acked() > before || sending_.credit() > allowed || answered) {
        backoff_ = 0;
        probed_ = false;
    }
    return true;
}

void Connection::heard_accept(const Header& header, Bytes packet, Time now) {
    if (state_ != State::connecting || !hello_.holds(header, packet)) {
        ++counters_.packets_dropped;
        if (state_ == State::open) owes_ping_ = owes_ping_ || !sending_.anything_flying();
        return;
    }
    const auto offer = Offer::decode(packet.subspan(header_bytes, header.length));
    if (!offer || offer->oldest != offer->newest || offer->newest < options_.oldest ||
        offer->newest > options_.newest || offer->mss > mss_) {
        ++counters_.packets_dropped;
        return;
    }
    peer_id_ = offer->id;
    server_nonce_ = offer->nonce;
    version_ = offer->newest;
    if (offer->mss < mss_) {
        mss_ = offer->mss;
        Sending fresh(mss_, options_.queue_allowance);  // nothing was written yet
        sending_ = std::move(fresh);
    }
    sending_.set_credit(offer->credit);
    digests_ = options_.digests || !(offer->flags & Offer::no_digests);
    met();
    state_ = State::open;
    heard_at_ = now;
    owes_ping_ = true;  // which tells the peer that its ACCEPT has come
}

void Connection::refused(const Header& header, Bytes packet) {
    if (state_ != State::connecting || !opening_.holds(header, packet) || header.length < 4) return;
    const std::byte* said = packet.data() + header_bytes;
    refused_oldest_ = load<std::uint8_t>(said + 1);
    refused_newest_ = load<std::uint8_t>(said + 2);
    switch (Refusal{load<std::uint8_t>(said)}) {
        case Refusal::nobody: return finish(End::nobody);
        case Refusal::full: return finish(End::full);
        case Refusal::version: return finish(End::version);
        case Refusal::stranger: return finish(End::stranger);
    }
}

// --- out ------------------------------------------------------------------------------------------

void Connection::emit(Kind kind, std::uint8_t phase, std::uint64_t offset, Bytes payload, bool again, Time now,
                      Outgoing& out) {
    const bool hello = kind == Kind::init || kind == Kind::accept;
    const std::uint64_t id = kind == Kind::init && ticket_ ? ticket_->session : peer_id_;
    Header header{.kind = kind, .version = version_, .phase = phase, .id = id, .offset = offset};
    if (!hello) {
        header.number = number_++;
        header.acked = receiving_.contiguous();
        header.credit = receiving_.promise();
        sending_.sent(header.number, now, kind, offset, kind == Kind::data ? payload.size() : 0, again);
    }
    (hello ? hello_ : *seals_[phase]).put(header, payload, out.header.data());
    out.payload = payload;
    ++counters_.packets_sent;
}

bool Connection::next_handshake(Time now, Outgoing& out) {
    if (!says_hello_) return false;
    says_hello_ = false;
    const bool client = state_ == State::connecting;
    Offer offer{.oldest = client ? options_.oldest : version_,
                .newest = version_,
                .mss = mss_,
                .flags = (client ? options_.digests : digests_) ? 0 : Offer::no_digests,
                .credit = receiving_.promise(),
                .id = id_,
                .nonce = client ? client_nonce_ : server_nonce_};
    offer.encode(hello_space_.data());
    hello_due_ = now + hello_wait_;
    hello_wait_ = std::min(2 * hello_wait_, options_.most_timeout);
    emit(client ? Kind::init : Kind::accept, ticket_ ? 1 : 0, 0, hello_space_, false, now, out);
    return true;
}

bool Connection::next_ack(Time now, Outgoing& out) {
    if (!ack_now_ && !(unacked_ && now >= ack_due_)) return false;
    ack_now_ = false;
    unacked_ = 0;
    const Time held = std::clamp<Time>((now - newest_came_) / microsecond, 0, 0xFFFFFFFF);
    store(ack_space_.data(), static_cast<std::uint32_t>(held));
    store(ack_space_.data() + 4, std::uint32_t{0});
    std::size_t count = 0;
    const auto& map = receiving_.numbers().map();
    const std::size_t most = std::min<std::size_t>(most_ranges, (mss_ - 8) / sizeof(Numbers));
    for (auto at = map.rbegin(); at != map.rend() && count < most; ++at, ++count) {
        store(ack_space_.data() + 8 + count * sizeof(Numbers), at->first);
        store(ack_space_.data() + 16 + count * sizeof(Numbers), at->second - 1);
    }
    const Bytes payload(ack_space_.data(), 8 + count * sizeof(Numbers));
    emit(Kind::ack, keyed_ ? 1 : 0, 0, payload, false, now, out);
    return true;
}

bool Connection::next(Time now, Outgoing& out) {
    out.segment = nullptr;
    if (owes_reset_) {
        owes_reset_ = false;
        if (!seals_[keyed_]) return false;
        emit(Kind::reset, keyed_ ? 1 : 0, 0, {}, false, now, out);
        return true;
    }
    if (state_ == State::connecting || state_ == State::accepting) return next_handshake(now, out);
    if (state_ == State::closed) return false;
    if (next_ack(now, out)) return true;
    Piece piece;
    const bool probing = owes_probe_;
    owes_probe_ = false;
    if (sending_.pick(piece, probing) || (probing && sending_.resend_newest(piece))) {
        emit(Kind::data, phase_of(piece.offset), piece.offset, piece.bytes, piece.again, now, out);
        out.segment = std::move(piece.segment);
        return true;
    }
    if (owes_ping_ || probing) {
        owes_ping_ = false;
        emit(Kind::ping, keyed_ ? 1 : 0, 0, {}, false, now, out);
        return true;
    }
    if (sending_.fin_lost()) owes_fin_ = true;
    if (owes_fin_ && sending_.all_sent()) {
        owes_fin_ = false;
        emit(Kind::fin, keyed_ ? 1 : 0, sending_.end(), {}, false, now, out);
        return true;
    }
    return false;
}

// --- time -----------------------------------------------------------------------------------------

Time Connection::answer_due() const {
    const bool starved = sending_.starved();
    if (!sending_.anything_flying() && !starved) return never;
    const Time timeout = sending_.trip().timeout(options_.least_timeout, options_.most_timeout);
    const bool probes = !probed_ && !starved && sending_.trip().known();
    const Time wait = probes ? std::min(sending_.trip().probe(options_.ack_delay), timeout)
                             : std::min(timeout << std::min(backoff_, most_backoff), options_.most_timeout);
    return sending_.last_sent() + wait;
}

Time Connection::due() const {
    if (state_ == State::closed) return over() ? 0 : never;  // to be forgotten
    if (state_ == State::connecting || state_ == State::accepting)
        return std::min(hello_due_, started_ + options_.handshake_deadline);
    Time due = std::min(answer_due(), heard_at_ + options_.peer_deadline);
    if (unacked_) due = std::min(due, ack_due_);
    if (sending_.loss_due()) due = std::min(due, sending_.loss_due());
    if (!sending_.anything_flying())
        due = std::min(due, std::max(heard_at_, sending_.last_sent()) + options_.keep_alive);
    if (state_ == State::closing) due = std::min(due, farewell_due());
    return due;
}

bool Connection::all_said() const {
    return sending_.all_acked() && (sending_.fin_settled() || receiving_.finished());
}

Time Connection::farewell_due() const {
    if (!all_said()) return closed_at_ + options_.linger_deadline;
    // The peer's FIN may come again, if the word that it came was lost.
    return receiving_.finished() ? closed_at_ + 4 * options_.least_timeout : closed_at_;
}

void Connection::probe_or_time_out(Time now) {
    if (now < answer_due()) return;
    if (!probed_ && !sending_.starved() && sending_.trip().known()) {
        probed_ = true;
        owes_probe_ = true;
        return;
    }
    ++backoff_;
    if (sending_.starved()) {  // word of new credit may have been lost
        owes_ping_ = true;
        return;
    }
    ++counters_.timeouts;
    sending_.give_up_flying(now);
    if (sending_.all_sent()) owes_ping_ = true;  // nothing of the stream to ask with
}

void Connection::tick(Time now) {
    if (state_ == State::connecting || state_ == State::accepting) {
        if (now >= started_ + options_.handshake_deadline)
            finish(state_ == State::connecting ? End::unanswered : End::silent);
        else if (now >= hello_due_)
            says_hello_ = true;
        return;
    }
    if (state_ == State::closed) return;
    if (now >= heard_at_ + options_.peer_deadline) return finish(End::silent);
    if (state_ == State::closing) {
        if (now >= farewell_due() && all_said()) return finish(End::here);
        if (now >= farewell_due()) {
            finish(End::lingered);
            owes_reset_ = true;
            return;
        }
    }
    if (sending_.loss_due() && now >= sending_.loss_due()) sending_.find_lost(now);
    probe_or_time_out(now);
    if (!sending_.anything_flying() && now >= std::max(heard_at_, sending_.last_sent()) + options_.keep_alive)
        owes_ping_ = true;
}

// --- the owner ------------------------------------------------------------------------------------

void Connection::close(Time now) {
    if (state_ == State::closed || state_ == State::closing) return;
    if (!established()) {
        owes_reset_ = state_ == State::accepting;
        return finish(End::here);
    }
    state_ = State::closing;
    closed_at_ = now;
    owes_fin_ = !receiving_.finished();
}

void Connection::abort() {
    if (state_ == State::closed) return;
    owes_reset_ = seals_[keyed_].has_value();
    finish(End::here);
}

void Connection::cut_off(End why) {
    if (state_ != State::closed) finish(state_ == State::closing ? End::here : why);
}

void Connection::finish(End end) {
    end_ = end;
    state_ = State::closed;
    sending_.abandon();
}

void Connection::key(Bytes secret) {
    if (ticket_) return;
    seals_[1] = derived("session", secret);
    keyed_ = true;
    sending_.set_boundary();
    receiving_.forget_unread();
    key_boundary_ = receiving_.contiguous();
}

Counters Connection::counters() const {
    Counters counted = counters_;
    counted.packets_resent = sending_.resent();
    return counted;
}

}  // namespace genie::protocol
