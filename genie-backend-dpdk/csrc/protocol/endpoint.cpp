#include "endpoint.h"

#include <algorithm>
#include <limits>

namespace genie::protocol {

namespace {

constexpr std::size_t most_replies = 64;
constexpr std::size_t most_expected = 1 << 14;
constexpr unsigned packets_a_turn = 32;

}  // namespace

std::shared_ptr<Connection> Endpoint::connect(Path path, Time now, const Ticket* ticket) {
    if (memory_used() + options_.window > memory_) return nullptr;
    auto made = Connection::to_peer(options_, now, ticket);
    all_.emplace(made->id(), Entry{made, path, 0, true});
    return made;
}

void Endpoint::expect(const Ticket& ticket, Time until, Time now) {
    std::erase_if(expected_, [now](const auto& each) { return each.second.until <= now; });
    if (expected_.size() < most_expected) expected_[ticket.session] = {ticket, until};
}

const Ticket* Endpoint::expected(std::uint64_t session, Time now) const {
    const auto found = expected_.find(session);
    return found == expected_.end() || found->second.until <= now ? nullptr : &found->second.ticket;
}

std::shared_ptr<Connection> Endpoint::accept() {
    while (!ready_.empty()) {
        auto found = all_.find(ready_.front());
        ready_.pop_front();
        if (found != all_.end()) return found->second.connection;
    }
    return nullptr;
}

bool Endpoint::delivering() const {
    return std::any_of(all_.begin(), all_.end(), [](const auto& each) {
        const Connection& connection = *each.second.connection;
        return connection.state() == State::closing && !connection.all_said();
    });
}

void Endpoint::heard(Path path, Bytes packet, Time now, const Elsewhere& rest) {
    const auto header = decode(packet, rest.room);
    if (!header || (rest.payload && header->kind != Kind::data)) {
        ++dropped_;
        return;
    }
    if (header->kind == Kind::init) return heard_init(path, *header, packet, now);
    auto found = all_.find(header->id);
    if (found == all_.end() || found->second.path != path) {
        ++dropped_;
        return;
    }
    Entry& entry = found->second;
    if (header->kind == Kind::refuse) return entry.connection->refused(*header, packet);  // of whatever version
    if (header->kind != Kind::accept && header->version != entry.connection->version()) {
        ++dropped_;
        return;
    }
    entry.connection->heard(*header, packet, now, rest);
    if (!entry.told && entry.connection->established()) {
        entry.told = true;
        ready_.push_back(header->id);
    }
}

void Endpoint::heard_init(Path path, const Header& header, Bytes packet, Time now) {
    const auto offer = Offer::decode(packet.subspan(header_bytes, header.length));
    if (!offer) {
        ++dropped_;
        return;
    }
    if (auto known = callers_.find({path, offer->id}); known != callers_.end()) {
        all_.at(known->second).connection->heard(header, packet, now);
        return;
    }
    const Ticket* ticket = header.phase ? expected(header.id, now) : nullptr;
    // Who comes with a ticket that is not known can't be understood, and is told so.
    const bool stranger = header.phase && !ticket;
    if (!stranger && !(ticket ? Connection::hello_of(*ticket) : opening_).holds(header, packet)) {
        ++dropped_;
        return;
    }
    if (stranger) return refuse(path, offer->id, listening_ ? Refusal::stranger : Refusal::nobody);
    if (offer->newest < options_.oldest || offer->oldest > options_.newest)
        return refuse(path, offer->id, Refusal::version);
    if (!listening_) return refuse(path, offer->id, Refusal::nobody);
    if (memory_used() + options_.window > memory_) return refuse(path, offer->id, Refusal::full);
    auto made = Connection::from_peer(options_, *offer, now, ticket);
    if (ticket) expected_.erase(header.id);
    callers_[{path, offer->id}] = made->id();
    all_.emplace(made->id(), Entry{made, path, offer->id});
}

void Endpoint::refuse(Path path, std::uint64_t id, Refusal reason) {
    if (replies_.size() < most_replies) replies_.push_back({path, id, reason});
}

void Endpoint::path_lost(Path path) {
    for (auto& [id, entry] : all_)
        if (entry.path == path) entry.connection->cut_off();
}

void Endpoint::device_failed() {
    for (auto& [id, entry] : all_) entry.connection->cut_off(End::device);
}

void Endpoint::send(Time now, const std::function<bool(Path, const Outgoing&)>& send) {
    Outgoing out;
    while (!replies_.empty()) {
        const Reply reply = replies_.front();
        store(refusal_.data(), reply.reason);
        store(refusal_.data() + 1, options_.oldest);
        store(refusal_.data() + 2, options_.newest);
        store(refusal_.data() + 3, std::uint8_t{0});
        out.segment = nullptr;
        out.payload = refusal_;
        opening_.put({.kind = Kind::refuse, .version = options_.newest, .id = reply.id}, refusal_, out.header.data());
        replies_.pop_front();
        if (!send(reply.path, out)) return;
    }
    if (all_.empty()) return;
    std::vector<Entry*> turn;
    turn.reserve(all_.size());
    for (auto& [id, entry] : all_) turn.push_back(&entry);
    std::size_t idle = 0;
    while (idle < turn.size()) {
        Entry& entry = *turn[next_++ % turn.size()];
        unsigned count = 0;
        for (; count < packets_a_turn && entry.connection->next(now, out); ++count)
            if (!send(entry.path, out)) return;
        idle = count ? 0 : idle + 1;
    }
}

Time Endpoint::due() const {
    Time due = std::numeric_limits<Time>::max();
    for (const auto& [id, entry] : all_) due = std::min(due, entry.connection->due());
    return due;
}

void Endpoint::tick(Time now) {
    for (auto at = all_.begin(); at != all_.end();) {
        Entry& entry = at->second;
        if (entry.connection->due() <= now || entry.connection->state() == State::closing) entry.connection->tick(now);
        if (entry.connection->over()) {
            if (entry.peer) callers_.erase({entry.path, entry.peer});
            at = all_.erase(at);
        } else {
            ++at;
        }
    }
}

}  // namespace genie::protocol
