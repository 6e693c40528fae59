// One connection, for threads that wait.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "port.h"

namespace genie::dpdk {

enum class Outcome { done, late, ended };

using Interrupted = std::function<void()>;

// Of a message: the host's memory, or a device's.
struct Part {
    protocol::Bytes bytes;
    std::shared_ptr<gpumem::Allocation> device = nullptr;  // where they lie
};

class Stream {
  public:
    Stream(std::shared_ptr<Port> port, std::shared_ptr<protocol::Connection> connection)
        : port_(std::move(port)), connection_(std::move(connection)) {}
    ~Stream() { close(); }

    Outcome opened(protocol::Time patience, const Interrupted& interrupted);
    // The parts, one after the other; their memory is free again when it returns or throws. Late: the peer took nothing
    // for so long, and the connection is given up.
    Outcome send(std::span<const Part> parts, protocol::Time patience, const Interrupted& interrupted);
    // All of `to` or nothing.
    Outcome take(protocol::Space to, protocol::Time patience, const Interrupted& interrupted);
    // In place. Unless it is done, what was still to come is dropped when it comes.
    // `device`: the one in whose memory `to` lies, which is the port's.
    Outcome fill(protocol::Space to, protocol::Time patience, const Interrupted& interrupted,
                 gpumem::Memory* device = nullptr);
    void skip(std::uint64_t bytes);
    // Waits until what is skipped, or was not filled, has come.
    Outcome skipped(protocol::Time patience, const Interrupted& interrupted);

    bool hung_up();
    void key(protocol::Bytes secret);
    void close();
    protocol::End end();
    std::uint64_t begun() const { return begun_; }
    protocol::Connection& connection() { return *connection_; }
    Port& port() { return *port_; }
    int fd();  // readable while there is something to take, or the end of it

  private:
    class Message;

    bool ended(std::uint64_t wanted) const;
    bool broken() const;
    void ring();  // with the mutex: what `fd` says is so again

    std::shared_ptr<Port> port_;
    std::shared_ptr<protocol::Connection> connection_;
    Event in_, out_;
    std::optional<Event> bell_;  // for whoever asked for it
    bool rung_ = false;
    bool closed_ = false;
    std::uint64_t begun_ = 0;
};

}  // namespace genie::dpdk
