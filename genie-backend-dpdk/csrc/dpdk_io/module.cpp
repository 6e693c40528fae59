// What Python sees. No call that waits for a peer holds the interpreter's lock, and no thread that holds a port's mutex
// wants it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <rte_ethdev.h>

#include <limits>
#include <set>

#include "../gpumem/bindings.h"
#include "../unlocked.h"
#include "eal.h"
#include "stream.h"

namespace py = pybind11;

namespace genie::dpdk {

namespace {

using namespace protocol;

struct Late : std::runtime_error {
    Late() : std::runtime_error("late") {}
};
struct Ended : std::runtime_error {
    Ended() : std::runtime_error("ended") {}
};
struct Forked : std::runtime_error {
    Forked() : std::runtime_error("forked") {}
};

// A child process has a port's memory, and nobody who polls it.
struct Here {
    Here() {
        if (forked()) throw Forked();
    }
};

// Work of the parent's alone, without the interpreter's lock.
template <class Work>
auto away(Work work) {
    const Here here;
    return unlocked(std::move(work));
}

// Nobody waits for the end of a port, which may take a while: least of all whoever holds the interpreter's lock.
void drop_port(Port* port) {
    if (!forked()) later([port] { delete port; });
}

void drop_stream(Stream* stream) {
    if (!forked()) delete stream;
}

Time patience_of(std::optional<double> seconds) {
    if (!seconds || *seconds > 1e9) return std::numeric_limits<Time>::max();
    return static_cast<Time>(std::max(*seconds, 0.0) * second);
}

void check_signals() {
    py::gil_scoped_acquire held;
    if (PyErr_CheckSignals()) throw py::error_already_set();
}

void check(Outcome outcome) {
    if (outcome == Outcome::late) throw Late();
    if (outcome == Outcome::ended) throw Ended();
}

void send(Stream& stream, const py::sequence& parts, double patience) {
    const Here here;
    std::vector<py::buffer_info> held;
    std::vector<Part> memory;
    for (const auto& part : parts) {
        if (py::isinstance<gpumem::Buffer>(part)) {
            const auto& buffer = part.cast<const gpumem::Buffer&>();
            memory.push_back({Bytes(buffer.at(), buffer.bytes), buffer.memory});
            continue;
        }
        held.push_back(gpumem::whole(py::reinterpret_borrow<py::buffer>(part)));
        const auto& info = held.back();
        memory.push_back({{static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.size * info.itemsize)}});
    }
    unlocked([&] { check(stream.send(memory, patience_of(patience), check_signals)); });
}

py::bytes take(Stream& stream, std::size_t count, std::optional<double> patience) {
    const Here here;
    std::string taken(count, '\0');
    unlocked([&] {
        check(stream.take(std::as_writable_bytes(std::span(taken)), patience_of(patience), check_signals));
    });
    return py::bytes(taken);
}

void fill(Stream& stream, const py::buffer& into, std::optional<double> patience) {
    const Here here;
    const py::buffer_info info = gpumem::whole(into, true);
    const Space space(static_cast<std::byte*>(info.ptr), static_cast<std::size_t>(info.size * info.itemsize));
    unlocked([&] { check(stream.fill(space, patience_of(patience), check_signals)); });
}

bool fills(Stream& stream, const gpumem::Buffer& into) { return stream.port().gpu().get() == &into.memory->device(); }

void fill_device(Stream& stream, const gpumem::Buffer& into, std::optional<double> patience) {
    const Here here;
    if (!fills(stream, into)) throw std::invalid_argument("packets do not go to memory of that device");
    unlocked([&] {
        check(stream.fill(Space(into.at(), into.bytes), patience_of(patience), check_signals,
                          &into.memory->device().memory()));
    });
}

const char* name_of(End end) {
    switch (end) {
        case End::none: return "open";
        case End::here: return "here";
        case End::peer: return "peer";
        case End::reset: return "reset";
        case End::silent: return "silent";
        case End::unanswered: return "unanswered";
        case End::nobody: return "nobody";
        case End::full: return "full";
        case End::version: return "version";
        case End::stranger: return "stranger";
        case End::lingered: return "lingered";
        case End::device: return "device";
    }
    return "open";
}

using Own = std::tuple<std::uint32_t, std::uint8_t, std::uint32_t>;

std::shared_ptr<Port> make_port(std::string device, std::string arguments, int control,
                                std::optional<Own> own, std::uint16_t mss, std::size_t window, std::size_t memory,
                                double spin_us, bool busy, double deadline, double queue_allowance, bool digests,
                                std::shared_ptr<gpumem::GpuDevice> gpu, bool split_here, std::optional<Nic> nic) {
    PortOptions options;
    options.device = std::move(device);
    options.arguments = std::move(arguments);
    options.control = control;
    if (own) {
        const auto [ip, prefix, gateway] = *own;
        options.own = Addressing{ip, prefix, gateway, !nic || nic->asks};
    }
    options.nic = std::move(nic);
    options.protocol.mss = mss;
    options.protocol.window = window;
    options.protocol.peer_deadline = static_cast<Time>(deadline * second);
    options.protocol.handshake_deadline = static_cast<Time>(deadline * second);
    options.protocol.queue_allowance = static_cast<Time>(queue_allowance * second);
    options.protocol.digests = digests;
    options.memory = memory;
    options.gpu = {std::move(gpu), split_here};
    options.spin = static_cast<Time>(spin_us * microsecond);
    options.busy = busy;
    return unlocked([&] { return std::shared_ptr<Port>(new Port(std::move(options)), drop_port); });
}

Ticket ticket_of(std::uint64_t session, const std::string& secret) {
    Ticket ticket{.session = session};
    if (!session || secret.size() != ticket.secret.size()) throw std::invalid_argument("no ticket has such a secret");
    std::memcpy(ticket.secret.data(), secret.data(), secret.size());
    return ticket;
}

using Given = std::optional<std::pair<std::uint64_t, py::bytes>>;

std::shared_ptr<Stream> connect(const std::shared_ptr<Port>& port, Path path, double patience, const Given& given) {
    const Here here;
    std::optional<Ticket> ticket;
    if (given) ticket = ticket_of(given->first, given->second);
    return unlocked([&]() -> std::shared_ptr<Stream> {
        std::shared_ptr<Connection> made;
        {
            std::lock_guard lock(port->mutex());
            if (!port->peer_gone()) made = port->endpoint().connect(path, port->now(), ticket ? &*ticket : nullptr);
        }
        if (!made) return nullptr;
        std::shared_ptr<Stream> stream(new Stream(port, std::move(made)), drop_stream);
        if (stream->opened(patience_of(patience), check_signals) == Outcome::late) throw Late();
        return stream;
    });
}

std::shared_ptr<Stream> accept(const std::shared_ptr<Port>& port) {
    return away([&]() -> std::shared_ptr<Stream> {
        std::lock_guard lock(port->mutex());
        auto made = port->endpoint().accept();
        if (!made) return nullptr;
        return {new Stream(port, std::move(made)), drop_stream};
    });
}

py::dict counters(Stream& stream) {
    const Here here;
    std::unique_lock lock(stream.port().mutex());
    const Counters counted = stream.connection().counters();
    lock.unlock();
    py::dict told;
    told["packets_sent"] = counted.packets_sent;
    told["packets_received"] = counted.packets_received;
    told["packets_dropped"] = counted.packets_dropped;
    told["packets_resent"] = counted.packets_resent;
    told["timeouts"] = counted.timeouts;
    told["packets_split"] = counted.packets_split;
    return told;
}

using Names = std::set<std::string>;

std::uint64_t bits_of(const Names& names, const char* (*name)(std::uint64_t)) {
    std::uint64_t bits = 0;
    std::size_t found = 0;
    for (std::uint64_t bit = 1; bit; bit <<= 1)
        if (names.contains(name(bit))) bits |= bit, ++found;
    if (found != names.size()) throw std::invalid_argument("DPDK has no such offload");
    return bits;
}

Names names_of(std::uint64_t bits, const char* (*name)(std::uint64_t)) {
    Names names;
    for (std::uint64_t bit = 1; bit; bit <<= 1)
        if (bits & bit) names.insert(name(bit));
    return names;
}

// What a NIC with such abilities would be asked for, by DPDK's names of them.
std::tuple<Names, Names, bool, std::string> plan_nic(const Names& receiving, const Names& sending, std::uint16_t mtu,
                                                    std::uint16_t most_mtu, std::uint16_t least_mtu, bool pools,
                                                    std::uint16_t segments, bool split) {
    rte_eth_dev_info can{};
    can.rx_offload_capa = bits_of(receiving, rte_eth_dev_rx_offload_name);
    can.tx_offload_capa = bits_of(sending, rte_eth_dev_tx_offload_name);
    can.max_mtu = most_mtu;
    can.min_mtu = least_mtu;
    can.rx_seg_capa.multi_pools = pools;
    can.rx_seg_capa.max_nseg = segments;
    const Plan made = plan(can, mtu, split);
    return {names_of(made.receiving, rte_eth_dev_rx_offload_name), names_of(made.sending, rte_eth_dev_tx_offload_name),
            made.splits, made.problem};
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    py::register_exception<Late>(module, "Late");
    py::register_exception<Ended>(module, "Ended");
    py::register_exception<Forked>(module, "Forked");
    gpumem::bind(module);
    module.def("start", [](const std::vector<std::string>& arguments) {
        unlocked([&] { start_eal(arguments); });
    }, py::arg("arguments"));
    module.def("frames_in_use", [] { return away(frames_in_use); });
    module.def("add_device", [](const std::string& name, const std::string& arguments) {
        away([&] { add_device(name, arguments); });
    }, py::arg("name"), py::arg("arguments"));
    module.def("forked", &forked);
    module.def("versions", [] { return std::pair(protocol::oldest_version, protocol::newest_version); });
    module.def("most_segment", [] { return frame_room() - frame_headers - header_bytes; });

    py::class_<Nic>(module, "Nic")
        .def(py::init([](std::string bus, std::uint16_t mtu, bool shared, bool asks, double link_wait) {
            return Nic{std::move(bus), mtu, shared, asks, static_cast<Time>(link_wait * second)};
        }), py::kw_only(), py::arg("bus"), py::arg("mtu"), py::arg("shared"), py::arg("asks"), py::arg("link_wait"));
    module.def("plan_nic", &plan_nic, py::kw_only(), py::arg("receiving"), py::arg("sending"), py::arg("mtu") = 1500,
               py::arg("most_mtu") = 9000, py::arg("least_mtu") = 68, py::arg("pools") = true,
               py::arg("segments") = 2, py::arg("split") = false);

    py::class_<Event, std::shared_ptr<Event>>(module, "Event")
        .def(py::init())
        .def("set", &Event::set)
        .def("clear", &Event::clear)
        .def("fileno", &Event::fd);

    py::class_<Port, std::shared_ptr<Port>>(module, "Port")
        .def(py::init(&make_port), py::kw_only(), py::arg("device"), py::arg("arguments"), py::arg("control"),
             py::arg("own") = std::nullopt, py::arg("mss"), py::arg("window"), py::arg("memory"), py::arg("spin_us"), py::arg("busy"),
             py::arg("deadline"), py::arg("queue_allowance"), py::arg("digests") = true, py::arg("gpu") = nullptr,
             py::arg("split_here") = false, py::arg("nic") = std::nullopt)
        .def("connect", &connect, py::arg("path"), py::arg("patience"), py::arg("ticket") = std::nullopt)
        .def("expect", [](Port& port, std::uint64_t session, const std::string& secret, double seconds) {
            const Ticket ticket = ticket_of(session, secret);
            away([&] {
                std::lock_guard lock(port.mutex());
                port.endpoint().expect(ticket, port.now() + patience_of(seconds), port.now());
            });
        }, py::arg("session"), py::arg("secret"), py::arg("seconds"))
        .def("accept", &accept)
        .def("listen", [](Port& port, std::shared_ptr<Event> ready) {
            away([&] {
                std::lock_guard lock(port.mutex());
                port.listen(std::move(ready));
            });
        }, py::arg("ready").none(true))
        .def("drain", [](Port& port, double patience) { away([&] { port.drain(patience_of(patience)); }); })
        .def("keep", &Port::keep, py::arg("line"))
        .def("forget", &Port::forget)
        .def("hold", [](Port& port, std::uint16_t at, int call) { away([&] { port.hold(at, call); }); }, py::arg("port"),
             py::arg("call"))
        .def("learn", [](Port& port, std::uint32_t ip, const Mac& mac) { away([&] { port.learn(ip, mac); }); },
             py::arg("ip"), py::arg("mac"))
        .def("release", [](Port& port, std::uint16_t at) { away([&] { port.release(at); }); }, py::arg("port"))
        .def_property_readonly("up", &Port::up)
        .def_property_readonly("gone", &Port::peer_gone)
        .def_property_readonly("splits", &Port::splits)
        .def_property_readonly("connections", [](Port& port) {
            const Here here;
            std::lock_guard lock(port.mutex());
            return port.endpoint().connections();
        });

    py::class_<Stream, std::shared_ptr<Stream>>(module, "Stream")
        .def("send", &send, py::arg("parts"), py::arg("patience"))
        .def("take", &take, py::arg("count"), py::arg("patience"))
        .def("fills", &fills, py::arg("into"))
        .def("fill", &fill_device, py::arg("into"), py::arg("patience"))
        .def("fill", &fill, py::arg("into"), py::arg("patience"))
        .def("skip", [](Stream& stream, std::uint64_t bytes) { away([&] { stream.skip(bytes); }); })
        .def("skipped", [](Stream& stream, std::optional<double> patience) {
            away([&] { check(stream.skipped(patience_of(patience), check_signals)); });
        }, py::arg("patience"))
        .def("hung_up", [](Stream& stream) { return away([&] { return stream.hung_up(); }); })
        .def("key", [](Stream& stream, const std::string& secret) {
            away([&] { stream.key(std::as_bytes(std::span(secret))); });
        })
        .def("close", [](Stream& stream) { away([&] { stream.close(); }); })
        .def("fileno", [](Stream& stream) { return away([&] { return stream.fd(); }); })
        .def_property_readonly("begun", &Stream::begun)
        .def_property_readonly("session", [](Stream& stream) { return stream.connection().session(); })
        .def_property_readonly("end", [](Stream& stream) { return forked() ? "forked" : name_of(stream.end()); })
        .def_property_readonly("versions", [](Stream& stream) {
            return std::pair(stream.connection().refused_oldest(), stream.connection().refused_newest());
        })
        .def("counters", &counters);
}

}  // namespace genie::dpdk
