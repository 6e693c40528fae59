// Packets whose headers are in the host's memory and whose payloads are in a device's, as a NIC that splits them gives
// them to the protocol.
#include <cstdint>
#include <cstring>
#include <deque>

#include "../../protocol/endpoint.h"
#include "check.h"

namespace genie::gpumem::check {

namespace {

using namespace protocol;

struct Packet {
    std::vector<std::byte> head, payload;
};

// Two ends, and packets between them. What comes to `node` comes split.
class Pair {
  public:
    explicit Pair(Memory& memory) : memory_(memory), slot_(memory.allocate(page)) {
        node.listen(true);
        sender = client.connect(0, now);
        run();
        receiver = node.accept();
        expect(receiver && sender->established(), "they meet");
    }
    ~Pair() { memory_.release(slot_); }

    void run() {
        for (int idle = 0; idle < 3;) {
            now += 200 * microsecond;
            client.tick(now);
            node.tick(now);
            const auto take = [](std::deque<Packet>& to) {
                return [&to](Path, const Outgoing& out) {
                    to.push_back({{out.header.begin(), out.header.end()}, {out.payload.begin(), out.payload.end()}});
                    return true;
                };
            };
            client.send(now, take(to_node_));
            node.send(now, take(to_client_));
            idle = to_node_.empty() && to_client_.empty() ? idle + 1 : 0;
            for (; !to_node_.empty(); to_node_.pop_front()) deliver(to_node_.front());
            for (; !to_client_.empty(); to_client_.pop_front()) {
                auto& [head, payload] = to_client_.front();
                head.insert(head.end(), payload.begin(), payload.end());
                client.heard(0, head, now);
            }
        }
    }

    void deliver(const Packet& packet) {
        if (kind_of(packet.head) == Kind::data && split) {
            if (spoil && random_() % 8 == 0) return spoiled(packet);
            memory_.copy(slot_, packet.payload.data(), packet.payload.size());
            expect(memory_.finish(), "the NIC writes");
            hear(packet.head, packet.payload.size());
            return;
        }
        auto whole = packet.head;
        whole.insert(whole.end(), packet.payload.begin(), packet.payload.end());
        node.heard(0, whole, now);
    }

    std::size_t spoilt = 0;
    bool split = true, spoil = false;
    Time now = second;
    Options options{.mss = 8192, .window = 1 << 20};
    Endpoint client{options, std::size_t{1} << 30}, node{options, std::size_t{1} << 30};
    std::shared_ptr<Connection> sender, receiver;

  private:
    // Only a header's bytes are the host's, and there is no more room than came: sanitizers watch both.
    void hear(const std::vector<std::byte>& head, std::size_t room) {
        node.heard(0, head, now, {slot_, room, &memory_, memory_.readable()});
        expect(memory_.finish(), "payloads go to their place");
    }

    void spoiled(const Packet& packet) {
        ++spoilt;
        auto head = packet.head;
        auto payload = packet.payload;
        switch (random_() % (memory_.readable() ? 4 : 3)) {
            case 0: head[random_() % head.size()] ^= std::byte{1}; break;
            case 1: return hear(head, payload.size() - 1 - random_() % payload.size());  // shorter than it says
            case 2: head[3] = static_cast<std::byte>(random_() % 9); break;  // of another kind
            case 3: payload[random_() % payload.size()] ^= std::byte{1}; break;
        }
        if (head == packet.head && payload == packet.payload) --spoilt;
        memory_.copy(slot_, payload.data(), payload.size());
        expect(memory_.finish(), "the NIC writes");
        hear(head, payload.size());
    }

    Memory& memory_;
    std::byte* slot_;
    std::deque<Packet> to_node_, to_client_;
    std::mt19937 random_{7};
};

std::size_t transfer(Memory& memory, bool split, bool spoil, bool to_device) {
    Pair pair(memory);
    pair.split = split;
    pair.spoil = spoil;
    std::size_t sent = 0;
    for (std::size_t size : {std::size_t{1}, std::size_t{8191}, std::size_t{8193}, std::size_t{700'000}, std::size_t{3'000'001}}) {
        const auto data = noise(size, static_cast<unsigned>(size));
        pair.sender->write(Segment::borrow(data));
        pair.run();  // what there is credit for waits in the ring
        std::vector<std::byte> got(size);
        std::byte* target = to_device ? memory.allocate(size) : got.data();
        pair.receiver->receiving().post(target, size, to_device ? &memory : nullptr);
        expect(memory.finish(), "what waited goes to its place");
        pair.receiver->was_read();
        for (int more = 0; more < 1000 && pair.receiver->receiving().posted(); ++more) pair.run();
        expect(!pair.receiver->receiving().posted(), "all of it comes");
        if (to_device) {
            memory.copy(got.data(), target, size);
            expect(memory.finish(), "it is read");
            memory.release(target);
        }
        expect(got == data, "it is what was sent");
        sent += size;
    }
    expect(!spoil || (pair.spoilt > 20 && pair.receiver->counters().packets_dropped > 0), "spoilt packets came");
    expect((pair.receiver->counters().packets_split > 0) == split, "packets come as they were told to");
    pair.node.device_failed();
    expect(pair.receiver->end() == End::device, "without the device the connection is over, and says why");
    return sent;
}

}  // namespace

void packets() {
    std::size_t sent = 0;
    for (bool guarded : {false, true}) {
        const auto memory = soft_memory(std::size_t{64} << 20, guarded);
        for (bool to_device : {false, true})
            for (bool spoil : {false, true}) sent += transfer(*memory, true, spoil, to_device);
        sent += transfer(*memory, false, false, true);
    }
    std::printf("{\"check\": \"packets\", \"bytes\": %zu}\n", sent);
}

}  // namespace genie::gpumem::check
