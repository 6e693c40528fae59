// One connection as a state machine: packets and the time go in, packets and events come out. It does no I/O.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "header.h"
#include "receiving.h"
#include "seal.h"
#include "sending.h"

namespace genie::protocol {

struct Options {
    std::uint16_t mss = 1400;  // bytes of the stream in one packet, at most
    std::size_t window = 8 << 20;  // bytes that are kept for the peer until they are read
    Time queue_allowance = millisecond;  // how much longer than the shortest a round trip may take
    Time ack_delay = 50 * microsecond;
    Time least_timeout = 5 * millisecond;
    Time most_timeout = second;
    Time handshake_deadline = 10 * second;
    Time keep_alive = second;  // an idle peer is asked so often whether it lives, or oftener: see below
    Time peer_deadline = 10 * second;  // a peer that says nothing for so long is gone; within that it is asked four times
    Time linger_deadline = 60 * second;  // what was written before closing is delivered within that, or dropped
    bool digests = true;  // of payloads; without them where both sides say so
    std::uint8_t oldest = oldest_version, newest = newest_version;
};

enum class State : std::uint8_t { connecting, accepting, open, closing, closed };

enum class End : std::uint8_t {
    none,
    here,  // this side closed
    peer,  // the peer closed, in order
    reset,  // the peer gave the connection up
    silent,  // the peer, or the way to it, is gone
    unanswered,  // nobody answered the first packet
    nobody,  // who answered has nobody listening
    full,  // who answered has no memory left
    version,  // who answered speaks other versions
    stranger,  // who answered does not know the ticket, or not any more
    lingered,  // the peer did not take what was left when this side closed
    device,  // the device whose memory the stream goes to, or comes from, does not copy
};

enum class Refusal : std::uint8_t { nobody = 1, full = 2, version = 3, stranger = 4 };

// From the control plane: the session's name, and a secret that both sides know before the first packet.
struct Ticket {
    std::uint64_t session = 0;
    Key secret{};
};

struct Offer {  // what INIT and ACCEPT say
    std::uint8_t oldest = 0, newest = 0;
    std::uint16_t mss = 0;
    std::uint32_t flags = 0;
    std::uint64_t credit = 0, id = 0;
    Nonce nonce{};

    static constexpr std::size_t bytes = 40;
    static constexpr std::uint32_t no_digests = 1;  // a flag
    void encode(std::byte* to) const;
    static std::optional<Offer> decode(Bytes payload);
};

struct Outgoing {
    std::array<std::byte, header_bytes> header;
    Bytes payload;
    std::shared_ptr<Segment> segment;  // whose memory the payload is; none where it must be copied at once
};

struct Counters {
    std::uint64_t packets_sent = 0, packets_received = 0, packets_dropped = 0, packets_resent = 0, timeouts = 0;
    std::uint64_t packets_split = 0;  // whose payload came into a device's memory
};

class Connection {
  public:
    // With a ticket every packet is under its secret, the first included.
    static std::shared_ptr<Connection> to_peer(const Options& options, Time now, const Ticket* ticket = nullptr);
    // For an INIT that offers a version both sides speak, and is under the secret of the ticket if there is one.
    static std::shared_ptr<Connection> from_peer(const Options& options, const Offer& offer, Time now,
                                                 const Ticket* ticket = nullptr);
    static Seal hello_of(const Ticket& ticket);  // of INIT and ACCEPT

    // `rest`: where the payload of a DATA packet lies that does not follow the header.
    void heard(const Header& header, Bytes packet, Time now, const Elsewhere& rest = {});
    void refused(const Header& header, Bytes packet);
    // The next packet to send now, if there is one. Its payload holds until the next call of anything here.
    bool next(Time now, Outgoing& out);
    Time due() const;  // when `tick` has something to do
    void tick(Time now);

    void write(std::shared_ptr<Segment> segment) { sending_.push(std::move(segment)); }
    void was_read() { ack_now_ = ack_now_ || receiving_.owes_credit(); }  // or memory was posted
    bool owes_ack_now() const { return ack_now_; }
    void close(Time now);  // what was written is still delivered
    void abort();  // nothing is
    void cut_off(End why = End::silent);  // the way to the peer is known to be gone, or so is a device
    void key(Bytes secret);  // from here on, in both directions; nothing where it came with a ticket

    State state() const { return state_; }
    End end() const { return end_; }
    bool all_said() const;  // the peer has everything, the end included
    bool established() const { return state_ == State::open || state_ == State::closing; }
    bool over() const { return state_ == State::closed && !owes_reset_; }
    std::uint8_t refused_oldest() const { return refused_oldest_; }
    std::uint8_t refused_newest() const { return refused_newest_; }
    std::uint64_t id() const { return id_; }
    std::uint64_t session() const { return ticket_ ? ticket_->session : 0; }  // of the ticket it came with
    std::uint8_t version() const { return version_; }  // the one agreed on; before that, this side's newest
    std::uint16_t mss() const { return mss_; }
    bool peer_finished() const { return receiving_.finished(); }
    Receiving& receiving() { return receiving_; }
    Sending& sending() { return sending_; }
    const Sending& sending() const { return sending_; }
    Counters counters() const;

  private:
    Connection(const Options& options, Time now, std::uint16_t mss);

    void heard_accept(const Header& header, Bytes packet, Time now);
    bool take_acks(const Header& header, Bytes payload, Time now);
    void finish(End end);
    void take(const Ticket* ticket);
    void met();  // both nonces are known
    Seal derived(const char* purpose, Bytes secret) const;
    void emit(Kind kind, std::uint8_t phase, std::uint64_t offset, Bytes payload, bool again, Time now, Outgoing& out);
    bool next_handshake(Time now, Outgoing& out);
    bool next_ack(Time now, Outgoing& out);
    void probe_or_time_out(Time now);
    Time answer_due() const;
    Time farewell_due() const;
    std::uint8_t phase_of(std::uint64_t offset) const { return keyed_ && offset >= sending_.boundary() ? 1 : 0; }

    Options options_;
    State state_;
    End end_ = End::none;
    std::uint64_t id_, peer_id_ = 0;
    std::uint16_t mss_;
    Nonce client_nonce_{}, server_nonce_{};
    Seal opening_ = Seal::open();  // of REFUSE, too, where nothing is known in common
    Seal hello_ = opening_;  // of INIT and ACCEPT
    std::optional<Ticket> ticket_;
    std::optional<Seal> seals_[2];
    bool digests_ = true;
    bool keyed_ = false, peer_keyed_ = false;
    std::uint64_t key_boundary_ = 0;  // of what is received
    Receiving receiving_;
    Sending sending_;
    std::uint64_t number_ = 0;
    bool says_hello_ = false;  // an INIT or ACCEPT is to be sent
    bool owes_ping_ = false, owes_fin_ = false, owes_reset_ = false, owes_probe_ = false;
    unsigned unacked_ = 0;  // packets that wait for an acknowledgement
    bool ack_now_ = false;
    Time ack_due_ = 0, newest_came_ = 0;
    Time hello_due_ = 0, hello_wait_;
    Time started_, heard_at_, closed_at_ = 0;
    std::uint8_t version_;
    unsigned backoff_ = 0;
    bool probed_ = false;
    std::uint8_t refused_oldest_ = 0, refused_newest_ = 0;
    std::array<std::byte, 8 + 32 * sizeof(Numbers)> ack_space_;
    std::array<std::byte, Offer::bytes> hello_space_;
    Counters counters_;
};

}  // namespace genie::protocol
