// All connections of one port: who a packet is for, and who may come in.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "connection.h"

namespace genie::protocol {

using Path = std::uint64_t;  // how to reach a peer: the owner's name for it

class Endpoint {
  public:
    // `memory` bounds the windows of all connections together; one that would go beyond is refused.
    Endpoint(const Options& options, std::size_t memory) : options_(options), memory_(memory) {}

    void listen(bool listening) { listening_ = listening; }
    // Nothing if there is no memory for it.
    std::shared_ptr<Connection> connect(Path path, Time now, const Ticket* ticket = nullptr);
    // Somebody will come with this ticket, once, and before the time is up.
    void expect(const Ticket& ticket, Time until, Time now);
    // A connection that came in and is ready, if there is one.
    std::shared_ptr<Connection> accept();
    bool has_ready() const { return !ready_.empty(); }
    bool delivering() const;  // what was written before closing

    // `rest`: where the payload lies, if it does not follow the header; of DATA packets alone.
    void heard(Path path, Bytes packet, Time now, const Elsewhere& rest = {});
    void device_failed();  // the one in whose memory payloads are
    void path_lost(Path path);  // it is known that nobody is there any more
    // Calls `send(path, outgoing)`, which takes each packet, until it returns false (no room for more now) or nothing is
    // left.
    void send(Time now, const std::function<bool(Path, const Outgoing&)>& send);
    Time due() const;
    void tick(Time now);  // and forgets what is over

    std::size_t connections() const { return all_.size(); }
    std::size_t memory_used() const { return all_.size() * options_.window; }
    std::uint64_t dropped() const { return dropped_; }

  private:
    struct Entry {
        std::shared_ptr<Connection> connection;
        Path path;
        std::uint64_t peer;  // the client's own id, where it came in
        bool told = false;  // to `accept`
    };
    using Caller = std::pair<Path, std::uint64_t>;

    const Ticket* expected(std::uint64_t session, Time now) const;
    void heard_init(Path path, const Header& header, Bytes packet, Time now);
    void refuse(Path path, std::uint64_t id, Refusal reason);

    Options options_;
    std::size_t memory_;
    bool listening_ = false;
    Seal opening_ = Seal::open();
    std::unordered_map<std::uint64_t, Entry> all_;
    std::map<Caller, std::uint64_t> callers_;
    struct Expected {
        Ticket ticket;
        Time until;
    };
    std::unordered_map<std::uint64_t, Expected> expected_;  // by session
    std::deque<std::uint64_t> ready_;
    struct Reply {
        Path path;
        std::uint64_t id;
        Refusal reason;
    };
    std::deque<Reply> replies_;
    std::array<std::byte, 4> refusal_;
    std::uint64_t next_ = 0;  // who sends first, in turn
    std::uint64_t dropped_ = 0;
};

}  // namespace genie::protocol
