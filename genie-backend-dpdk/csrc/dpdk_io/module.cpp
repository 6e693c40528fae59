// What Python sees. No call that waits for a peer holds the interpreter's lock, and no thread that holds a port's mutex
// wants it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>

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
    std::vector<py::buffer_info> held;
    std::vector<Bytes> memory;
    for (const auto& part : parts) {
        held.push_back(py::reinterpret_borrow<py::buffer>(part).request());
        const auto& info = held.back();
        memory.emplace_back(static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.size * info.itemsize));
    }
    py::gil_scoped_release released;
    check(stream.send(memory, patience_of(patience), check_signals));
}

py::bytes take(Stream& stream, std::size_t count, std::optional<double> patience) {
    std::string taken(count, '\0');
    {
        py::gil_scoped_release released;
        check(stream.take(std::as_writable_bytes(std::span(taken)), patience_of(patience), check_signals));
    }
    return py::bytes(taken);
}

void fill(Stream& stream, const py::buffer& into, std::optional<double> patience) {
    const py::buffer_info info = into.request(true);
    const Space space(static_cast<std::byte*>(info.ptr), static_cast<std::size_t>(info.size * info.itemsize));
    py::gil_scoped_release released;
    check(stream.fill(space, patience_of(patience), check_signals));
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
        case End::lingered: return "lingered";
    }
    return "open";
}

std::shared_ptr<Port> make_port(std::string device, std::string arguments, int control, std::uint16_t mss,
                                std::size_t window, std::size_t memory, double spin_us, bool busy, double deadline,
                                double queue_allowance) {
    PortOptions options;
    options.device = std::move(device);
    options.arguments = std::move(arguments);
    options.control = control;
    options.protocol.mss = mss;
    options.protocol.window = window;
    options.protocol.peer_deadline = static_cast<Time>(deadline * second);
    options.protocol.handshake_deadline = static_cast<Time>(deadline * second);
    options.protocol.queue_allowance = static_cast<Time>(queue_allowance * second);
    options.memory = memory;
    options.spin = static_cast<Time>(spin_us * microsecond);
    options.busy = busy;
    py::gil_scoped_release released;
    return std::make_shared<Port>(std::move(options));
}

std::shared_ptr<Stream> connect(const std::shared_ptr<Port>& port, double patience) {
    py::gil_scoped_release released;
    std::shared_ptr<Connection> made;
    {
        std::lock_guard lock(port->mutex());
        if (!port->peer_gone()) made = port->endpoint().connect(0, port->now());
    }
    if (!made) return nullptr;
    auto stream = std::make_shared<Stream>(port, std::move(made));
    if (stream->opened(patience_of(patience), check_signals) == Outcome::late) throw Late();
    return stream;
}

std::shared_ptr<Stream> accept(const std::shared_ptr<Port>& port) {
    py::gil_scoped_release released;
    std::lock_guard lock(port->mutex());
    auto made = port->endpoint().accept();
    return made ? std::make_shared<Stream>(port, std::move(made)) : nullptr;
}

py::dict counters(Stream& stream) {
    std::unique_lock lock(stream.port().mutex());
    const Counters counted = stream.connection().counters();
    lock.unlock();
    py::dict told;
    told["packets_sent"] = counted.packets_sent;
    told["packets_received"] = counted.packets_received;
    told["packets_dropped"] = counted.packets_dropped;
    told["packets_resent"] = counted.packets_resent;
    told["timeouts"] = counted.timeouts;
    return told;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    py::register_exception<Late>(module, "Late");
    py::register_exception<Ended>(module, "Ended");
    const auto unlocked = py::call_guard<py::gil_scoped_release>();

    module.def("start", &start_eal, py::arg("arguments"), unlocked);
    module.def("most_segment", [] { return frame_room() - frame_headers - header_bytes; });

    py::class_<Event, std::shared_ptr<Event>>(module, "Event")
        .def(py::init())
        .def("set", &Event::set)
        .def("clear", &Event::clear)
        .def("fileno", &Event::fd);

    py::class_<Port, std::shared_ptr<Port>>(module, "Port")
        .def(py::init(&make_port), py::kw_only(), py::arg("device"), py::arg("arguments"), py::arg("control"),
             py::arg("mss"), py::arg("window"), py::arg("memory"), py::arg("spin_us"), py::arg("busy"),
             py::arg("deadline"), py::arg("queue_allowance"))
        .def("connect", &connect, py::arg("patience"))
        .def("accept", &accept)
        .def("listen", [](Port& port, const Event* ready) {
            std::lock_guard lock(port.mutex());
            port.listen(ready);
        }, py::arg("ready").none(true), py::keep_alive<1, 2>(), unlocked)
        .def("drain", [](Port& port, double patience) { port.drain(patience_of(patience)); }, unlocked)
        .def_property_readonly("up", &Port::up)
        .def_property_readonly("gone", &Port::peer_gone)
        .def_property_readonly("connections", [](Port& port) {
            std::lock_guard lock(port.mutex());
            return port.endpoint().connections();
        });

    py::class_<Stream, std::shared_ptr<Stream>>(module, "Stream")
        .def("send", &send, py::arg("parts"), py::arg("patience"))
        .def("take", &take, py::arg("count"), py::arg("patience"))
        .def("fill", &fill, py::arg("into"), py::arg("patience"))
        .def("skip", &Stream::skip, unlocked)
        .def("skipped", [](Stream& stream, std::optional<double> patience) {
            check(stream.skipped(patience_of(patience), check_signals));
        }, py::arg("patience"), unlocked)
        .def("hung_up", &Stream::hung_up, unlocked)
        .def("key", [](Stream& stream, const std::string& secret) {
            stream.key(std::as_bytes(std::span(secret)));
        }, unlocked)
        .def("close", &Stream::close, unlocked)
        .def("fileno", &Stream::fd)
        .def_property_readonly("begun", &Stream::begun)
        .def_property_readonly("end", [](Stream& stream) { return name_of(stream.end()); })
        .def_property_readonly("versions", [](Stream& stream) {
            return std::pair(stream.connection().refused_oldest(), stream.connection().refused_newest());
        })
        .def("counters", &counters);
}

}  // namespace genie::dpdk
