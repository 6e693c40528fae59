// The protocol over a simulated network. One scenario a run; prints what happened as JSON, or "failed: …" and exits 1.
#include <cinttypes>
#include <cstring>
#include <map>
#include <string>

#include "traffic.h"

namespace genie::simulator {

namespace {

class Arguments {
  public:
    Arguments(int count, char** words) {
        for (int at = 2; at < count; ++at) {
            const char* equals = std::strchr(words[at], '=');
            if (!equals) fail("an argument is name=number");
            given_[std::string(words[at], static_cast<std::size_t>(equals - words[at]))] = std::atof(equals + 1);
        }
    }
    double get(const char* name, double otherwise) const {
        auto found = given_.find(name);
        return found == given_.end() ? otherwise : found->second;
    }
    std::uint64_t whole(const char* name, std::uint64_t otherwise) const {
        return static_cast<std::uint64_t>(get(name, static_cast<double>(otherwise)));
    }

  private:
    std::map<std::string, double> given_;
};

Weather weather_of(const Arguments& arguments) {
    Weather weather;
    weather.loss = arguments.get("loss", 0);
    weather.duplicate = arguments.get("duplicate", 0);
    weather.reorder = arguments.get("reorder", 0);
    weather.forge = arguments.get("forge", 0);
    weather.delay = static_cast<Time>(arguments.get("delay_us", 50) * microsecond);
    return weather;
}

Options options_of(const Arguments& arguments) {
    Options options;
    options.mss = static_cast<std::uint16_t>(arguments.whole("mss", 1400));
    options.window = arguments.whole("window", 1 << 20);
    options.digests = arguments.whole("digests", 1);
    return options;
}

// Two endpoints, and one connection between them.
struct World {
    Network network;
    Endpoint client, node;
    std::shared_ptr<Connection> here, there;

    World(const Arguments& arguments, const Options& ours, const Options& theirs)
        : network(weather_of(arguments), arguments.whole("seed", 1)), client(ours, std::size_t{1} << 30),
          node(theirs, arguments.whole("memory", std::size_t{1} << 30)) {
        network.join(&client);
        network.join(&node);
    }
    explicit World(const Arguments& arguments) : World(arguments, options_of(arguments), options_of(arguments)) {}

    void meet() {
        node.listen(true);
        here = client.connect(0, network.now());
        const bool met = network.run([&] { return there || (there = node.accept()) != nullptr; }, 20 * second);
        expect(met && here->state() == State::open, "a connection is opened");
    }

    void part() {
        here->close(network.now());
        there->close(network.now());
        const bool forgotten = network.run([&] { return !client.connections() && !node.connections(); },
                                           network.now() + 100 * second);
        expect(forgotten && !client.memory_used() && !node.memory_used(), "closed connections are forgotten");
        expect(!here->sending().has_segments() && !there->sending().has_segments(), "segments are returned");
    }
};

std::vector<std::size_t> sizes(std::mt19937_64& random, std::size_t count, std::size_t largest) {
    std::vector<std::size_t> made;
    for (std::size_t number = 0; number < count; ++number) made.push_back(random_size(random, largest));
    if (count) made.back() = largest;  // the extremes are always among them
    if (count > 1) made.front() = 1;
    return made;
}

void print(const World& world, std::uint64_t bytes) {
    const Counters sent = world.here->counters();
    std::printf("{\"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"packets\": %" PRIu64 ", \"forged\": %" PRIu64
                ", \"resent\": %" PRIu64 ", \"timeouts\": %" PRIu64 ", \"round_trip_us\": %.1f}\n",
                bytes, static_cast<double>(world.network.now()) / second, world.network.carried(),
                world.network.forged(), sent.packets_resent, sent.timeouts,
                static_cast<double>(world.here->sending().trip().smooth()) / microsecond);
}

// Messages both ways at once, under whatever weather; `key` changes the key on the way.
void transfer(const Arguments& arguments) {
    World world(arguments);
    world.meet();
    auto& random = world.network.random();
    const std::size_t count = arguments.whole("messages", 100), largest = arguments.whole("largest", 1 << 20);
    if (arguments.whole("key", 0)) {
        Flow hello({300}, 7), welcome({200}, 9);
        hello.write(*world.here, random);
        world.network.run([&] { hello.read(*world.there, random); return hello.done(); }, 100 * second);
        expect(hello.done(), "a greeting arrives");
        welcome.write(*world.there, random);
        const Key secret{std::byte{42}};
        world.there->key(secret);
        world.network.run([&] { welcome.read(*world.here, random); return welcome.done(); }, 200 * second);
        expect(welcome.done(), "an answer arrives under the key it was written under");
        world.here->key(secret);
    }
    Flow up(sizes(random, count - count / 2, largest), 1 << 10), down(sizes(random, count / 2, largest), 1 << 20);
    const bool whole = world.network.run(
        [&] {
            up.write(*world.here, random);
            down.write(*world.there, random);
            up.read(*world.there, random);
            down.read(*world.here, random);
            return up.done() && down.done();
        },
        100'000 * second);
    expect(whole, "all messages arrive");
    print(world, up.bytes() + down.bytes());
    world.part();
    expect(up.returned() && down.returned(), "borrowed memory is returned");
}

// Under a ticket from the first packet on; and what comes of one that does not fit.
void tickets(const Arguments& arguments) {
    const Ticket ticket{.session = 77, .secret = {std::byte{42}}};
    World world(arguments);
    world.node.listen(true);
    world.node.expect(ticket, 10 * second, world.network.now());
    auto come = [&](const Ticket& with) {
        auto made = world.client.connect(0, world.network.now(), &with);
        world.network.run([&] { return made->state() != State::connecting; }, world.network.now() + 30 * second);
        return made;
    };
    expect(come({.session = 78, .secret = ticket.secret})->end() == End::stranger, "an unknown ticket is refused");
    expect(world.node.connections() == 0, "and nothing is kept for it");
    const auto forger = come({.session = 77, .secret = {std::byte{43}}});
    expect(forger->end() == End::unanswered && !world.node.connections(), "who lacks the secret is not heard");
    world.node.expect(ticket, world.network.now() + 10 * second, world.network.now());
    world.here = come(ticket);
    expect(world.here->state() == State::open, "who has it is let in");
    expect(come(ticket)->end() == End::stranger, "once");
    expect(world.network.run([&] { return (world.there = world.node.accept()) != nullptr; }, 200 * second), "accepted");
    expect(world.there->session() == ticket.session, "the node knows with which ticket");
    auto& random = world.network.random();
    world.here->key(Key{std::byte{1}});  // what it is told after the greeting changes nothing
    Flow up(sizes(random, 20, 1 << 20), 1 << 10), down(sizes(random, 20, 1 << 20), 1 << 20);
    const auto exchanged = [&] {
        up.write(*world.here, random);
        down.write(*world.there, random);
        up.read(*world.there, random);
        down.read(*world.here, random);
        return up.done() && down.done();
    };
    expect(world.network.run(exchanged, 100'000 * second), "all messages arrive");
    print(world, up.bytes() + down.bytes());
    world.part();
    world.node.expect(ticket, world.network.now() + second, world.network.now());
    world.network.run([] { return false; }, world.network.now() + 2 * second);
    expect(come(ticket)->end() == End::stranger, "a ticket that is too old is refused");
}

// One side is gone from one moment to the next, in the middle of a transfer.
void death(const Arguments& arguments) {
    World world(arguments);
    world.meet();
    auto& random = world.network.random();
    Flow up({std::size_t{8} << 20}, 1), down({std::size_t{8} << 20}, 2);
    const Time when = world.network.now() + static_cast<Time>(random() % (5 * millisecond));
    auto go_on = [&] {
        up.write(*world.here, random);
        down.write(*world.there, random);
        up.read(*world.there, random);
        down.read(*world.here, random);
        return false;
    };
    world.network.run(go_on, when);
    expect(!up.done() || !down.done(), "the transfer is under way");
    const bool client_dies = random() % 2;
    world.network.kill(client_dies ? 0 : 1);
    Connection& left = client_dies ? *world.there : *world.here;
    Endpoint& endpoint = client_dies ? world.node : world.client;
    const Time deadline = world.network.now() + options_of(arguments).peer_deadline + second;
    const bool noticed = world.network.run([&] { return left.state() == State::closed; }, deadline);
    expect(noticed && left.end() == End::silent, "a dead peer is noticed within the deadline");
    world.network.run([&] { return !endpoint.connections(); }, deadline + second);
    expect(!endpoint.connections() && !left.sending().has_segments(), "nothing is left of the connection");
    std::printf("{\"noticed_s\": %.3f}\n", static_cast<double>(world.network.now() - when) / second);
}

void refusals(const Arguments& arguments) {
    const Options options = options_of(arguments);
    auto refused = [&](World& world, bool listening, End end) {
        world.node.listen(listening);
        auto connection = world.client.connect(0, world.network.now());
        world.network.run([&] { return connection->state() == State::closed; }, 30 * second);
        expect(connection->end() == end, "a refusal says why");
        world.network.run([&] { return !world.client.connections(); }, 31 * second);
        expect(!world.client.connections() && !world.node.connections(), "nothing is left of what was refused");
        return connection;
    };
    World deaf(arguments);
    refused(deaf, false, End::nobody);

    Options later = options;
    later.oldest = later.newest = 3;
    World newer(arguments, options, later);
    auto told = refused(newer, true, End::version);
    expect(told->refused_oldest() == 3 && told->refused_newest() == 3, "a refusal names the versions");

    World full(arguments, options, options);
    full.node = Endpoint(options, options.window - 1);
    refused(full, true, End::full);

    World dead(arguments);
    dead.network.kill(1);
    refused(dead, true, End::unanswered);

    // Whoever looks at the time only when it says so forgets it, too.
    Endpoint client(options, options.window), node(options, options.window);
    client.connect(0, 1);
    const auto deliver = [](Endpoint& from, Endpoint& to) {
        from.send(1, [&](Path, const Outgoing& out) {
            std::vector<std::byte> packet(out.header.begin(), out.header.end());
            packet.insert(packet.end(), out.payload.begin(), out.payload.end());
            to.heard(0, packet, 1);
            return true;
        });
    };
    deliver(client, node);
    deliver(node, client);
    expect(client.due() <= 1, "what was refused is to be forgotten at once");
    client.tick(1);
    expect(!client.connections(), "and is");
    std::printf("{\"refusals\": 4}\n");
}

// The smaller segment of the two counts; credit is never exceeded though nobody reads.
void negotiation(const Arguments& arguments) {
    Options small = options_of(arguments), large = small;
    large.mss = static_cast<std::uint16_t>(small.mss * 2);
    large.window = small.window * 4;
    for (const bool turned : {false, true}) {
        World world(arguments, turned ? small : large, turned ? large : small);
        world.meet();
        expect(world.here->mss() == small.mss && world.there->mss() == small.mss, "the smaller segment counts");
        auto bytes = content(1, 8 * large.window);
        world.here->write(Segment::borrow(bytes));
        world.network.run([] { return false; }, world.network.now() + 30 * second);
        const std::size_t window = turned ? large.window : small.window;
        expect(world.there->receiving().readable() == window, "a sender stops where its credit ends, and lives on");
        std::vector<std::byte> got(bytes.size());
        std::size_t filled = 0;
        world.network.run(
            [&] {
                const std::size_t count = std::min(world.there->receiving().readable(), got.size() - filled);
                world.there->receiving().take(Space(got).subspan(filled, count));
                return (filled += count) == got.size();
            },
            world.network.now() + 100 * second);
        expect(got == bytes, "it goes on when it is given more");
        world.part();
    }
    std::printf("{\"mss\": %u}\n", small.mss);
}

// The newest version that both speak counts, whoever speaks more.
void versions(const Arguments& arguments) {
    Options both = options_of(arguments), old = both;
    both.newest = static_cast<std::uint8_t>(old.newest + 1);
    for (const bool turned : {false, true}) {
        World world(arguments, turned ? old : both, turned ? both : old);
        world.meet();
        expect(world.here->version() == old.newest && world.there->version() == old.newest, "the older one counts");
        const auto bytes = content(5, 100'000);
        world.here->write(Segment::copy(bytes));
        Receiving& in = world.there->receiving();
        world.network.run([&] { return in.readable() == bytes.size(); }, world.network.now() + 10 * second);
        expect(in.readable() == bytes.size(), "and packets say so");
        world.part();
    }
    std::printf("{\"version\": %u}\n", old.newest);
}

// Memory is withdrawn before all of its bytes have come: they are dropped, and so is what is skipped after them.
void dropping(const Arguments&) {
    const auto bytes = content(6, 300);
    Receiving in(1000);
    in.promise();
    std::vector<std::byte> memory(100);
    in.post(memory.data(), memory.size());
    in.place(0, Bytes(bytes).first(40));
    in.place(120, Bytes(bytes).subspan(120, 20));  // early
    in.withdraw();
    in.post(nullptr, 60);
    in.place(40, Bytes(bytes).subspan(40, 80));
    expect(in.posted() && in.missing() == 20, "all that is skipped is waited for");
    in.place(140, Bytes(bytes).subspan(140));
    expect(!in.posted() && in.readable() == 140, "what comes after is kept");
    std::vector<std::byte> rest(in.readable());
    in.take(rest);
    expect(std::equal(rest.begin(), rest.end(), bytes.begin() + 160, bytes.end()), "from its first byte on");
    expect(std::equal(memory.begin(), memory.begin() + 40, bytes.begin()) && memory[40] == std::byte{0},
           "memory that is withdrawn is left alone");
    std::printf("{\"skipped\": 160}\n");
}

// What was written before closing arrives, and then the end; an idle connection lives.
void farewell(const Arguments& arguments) {
    World world(arguments);
    world.meet();
    world.network.run([] { return false; }, world.network.now() + 60 * second);
    expect(world.here->state() == State::open && world.there->state() == State::open, "an idle connection lives");
    const auto bytes = content(3, 100'000);
    world.here->write(Segment::copy(bytes));
    world.here->close(world.network.now());
    Receiving& in = world.there->receiving();
    world.network.run([&] { return in.finished() && in.readable() == bytes.size(); }, world.network.now() + 10 * second);
    std::vector<std::byte> got(in.readable());
    in.take(got);
    expect(got == bytes && in.over(), "what was sent before closing arrives, then the end");
    world.part();

    Options hasty = options_of(arguments);
    hasty.peer_deadline = 300 * millisecond;
    World idle(arguments, hasty, options_of(arguments));
    idle.meet();
    idle.network.run([] { return false; }, idle.network.now() + 60 * second);
    expect(idle.here->state() == State::open, "so it does where a peer's silence counts sooner");
    idle.part();
    std::printf("{\"bytes\": %zu}\n", got.size());
}

}  // namespace

int run(int count, char** words) {
    const std::string scenario = count > 1 ? words[1] : "";
    const Arguments arguments(count, words);
    if (scenario == "transfer") transfer(arguments);
    else if (scenario == "death") death(arguments);
    else if (scenario == "refusals") refusals(arguments);
    else if (scenario == "negotiation") negotiation(arguments);
    else if (scenario == "farewell") farewell(arguments);
    else if (scenario == "tickets") tickets(arguments);
    else if (scenario == "versions") versions(arguments);
    else if (scenario == "dropping") dropping(arguments);
    else fail("scenarios: transfer, death, refusals, negotiation, versions, dropping, farewell, tickets");
    return 0;
}

}  // namespace genie::simulator

int main(int count, char** words) { return genie::simulator::run(count, words); }
