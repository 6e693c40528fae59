// A network that loses, doubles, delays and forges, in virtual time, from a seed: the same every time.
#pragma once

#include <functional>
#include <queue>
#include <random>
#include <vector>

#include "../protocol/endpoint.h"

namespace genie::simulator {

using namespace genie::protocol;

struct Weather {
    double loss = 0, duplicate = 0, reorder = 0;
    double forge = 0;  // forged packets for each one that is sent
    Time delay = 50 * microsecond, jitter = 5 * microsecond, reorder_delay = 500 * microsecond;
    double bytes_per_second = 1.25e9;
    std::size_t queue = 4 << 20;  // bytes; what comes on top is lost
};

class Network {
  public:
    Network(const Weather& weather, std::uint64_t seed) : weather_(weather), random_(seed) {}

    // Each endpoint's peers are all behind its one path, 1 − its own number.
    void join(Endpoint* endpoint) { ends_.push_back({endpoint, 0, true}); }
    void kill(std::size_t which) { ends_[which].alive = false; }

    Time now() const { return now_; }
    std::uint64_t forged() const { return forged_; }
    std::uint64_t carried() const { return carried_; }
    std::mt19937_64& random() { return random_; }
    double chance() { return std::uniform_real_distribution<>(0, 1)(random_); }

    // Goes on until `done`, or nothing happens any more, or the time is up; whether it was `done`.
    template <class Done>
    bool run(Done done, Time until) {
        while (!done()) {
            for (std::size_t which = 0; which < ends_.size(); ++which) flush(which);
            Time next = until;
            if (!arrivals_.empty()) next = std::min(next, arrivals_.top().at);
            for (const auto& end : ends_)
                if (end.alive) next = std::min(next, end.endpoint->due());
            if (next >= until) {
                now_ = until;
                return done();
            }
            now_ = std::max(now_ + 1, next);
            while (!arrivals_.empty() && arrivals_.top().at <= now_) {
                Arrival arrival = std::move(const_cast<Arrival&>(arrivals_.top()));
                arrivals_.pop();
                if (ends_[arrival.to].alive) ends_[arrival.to].endpoint->heard(0, arrival.packet, now_);
            }
            for (const auto& end : ends_)
                if (end.alive) end.endpoint->tick(now_);
        }
        return true;
    }

  private:
    struct Arrival {
        Time at;
        std::uint64_t order;
        std::size_t to;
        std::vector<std::byte> packet;
        bool operator<(const Arrival& other) const {
            return std::tie(at, order) > std::tie(other.at, other.order);  // the earliest on top
        }
    };
    struct Side {
        Endpoint* endpoint;
        Time free_at;  // when its wire is
        bool alive;
    };

    void flush(std::size_t from) {
        if (!ends_[from].alive) return;
        ends_[from].endpoint->send(now_, [&](Path, const Outgoing& out) {
            std::vector<std::byte> packet(out.header.begin(), out.header.end());
            packet.insert(packet.end(), out.payload.begin(), out.payload.end());
            carry(from, std::move(packet));
            return true;
        });
    }

    void carry(std::size_t from, std::vector<std::byte> packet) {
        Side& side = ends_[from];
        ++carried_;
        for (double due = weather_.forge; due > 0 && chance() < due; due -= 1) {
            arrive(1 - from, now_ + weather_.delay + whole(weather_.delay), forge(packet));
            ++forged_;
        }
        side.free_at = std::max(side.free_at, now_);
        const double waiting = static_cast<double>(side.free_at - now_) * weather_.bytes_per_second / second;
        if (waiting > static_cast<double>(weather_.queue) || chance() < weather_.loss) return;
        side.free_at += static_cast<Time>(static_cast<double>(packet.size()) / weather_.bytes_per_second * second);
        Time at = side.free_at + weather_.delay + whole(weather_.jitter);
        if (chance() < weather_.reorder) at += whole(weather_.reorder_delay);
        if (chance() < weather_.duplicate) arrive(1 - from, at + whole(weather_.reorder_delay), packet);
        arrive(1 - from, at, std::move(packet));
    }

    // A packet that was really sent, changed; or noise that starts like a packet.
    std::vector<std::byte> forge(std::vector<std::byte> packet) {
        switch (whole(7)) {
            case 0:
                for (auto& byte : packet) byte = std::byte(random_());
                break;
            case 1:
                for (std::size_t at = 2; at < packet.size(); ++at) packet[at] = std::byte(random_());
                break;
            case 2:
                packet.resize(whole(static_cast<Time>(packet.size())));
                break;
            case 3:  // another place for the same bytes
                store(packet.data() + 24, load<std::uint64_t>(packet.data() + 24) + whole(1 << 20) + 1);
                break;
            case 4:  // another kind
                packet[3] = std::byte(whole(9) + 10 * (whole(4) == 0));
                packet[whole(header_bytes)] ^= std::byte(1 << whole(8));
                break;
            case 5:  // other bytes in the same place
                packet[packet.size() - 1 - whole(static_cast<Time>(packet.size() - 4))] ^= std::byte(1 << whole(8));
                break;
            default:
                packet[4 + whole(header_bytes - 4)] ^= std::byte(1 << whole(8));
        }
        return packet;
    }

    void arrive(std::size_t to, Time at, std::vector<std::byte> packet) {
        arrivals_.push({at, order_++, to, std::move(packet)});
    }

    Time whole(Time below) { return below <= 0 ? 0 : static_cast<Time>(random_() % static_cast<std::uint64_t>(below)); }

    Weather weather_;
    std::mt19937_64 random_;
    std::vector<Side> ends_;
    std::priority_queue<Arrival> arrivals_;
    Time now_ = 1;
    std::uint64_t order_ = 0, forged_ = 0, carried_ = 0;
};

}  // namespace genie::simulator
