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

class Stream {
  public:
    Stream(std::shared_ptr<Port> port, std::shared_ptr<protocol::Connection> connection)
        : port_(std::move(port)), connection_(std::move(connection)) {}
    ~Stream() { close(); }

    Outcome opened(protocol::Time patience, const Interrupted& interrupted);
    // The parts, one after the other; their memory is free again when it returns or throws. Late: the peer took nothing
    // for so long, and the connection is given up.
    Outcome send(std::span<const protocol::Bytes> parts, protocol::Time patience, const Interrupted& interrupted);
    // All of `to` or nothing.
    Outcome take(protocol::Space to, protocol::Time patience, const Interrupted& interrupted);
    // In place. Unless it is done, what was still to come is dropped when it comes.
    Outcome fill(protocol::Space to, protocol::Time patience, const Interrupted& interrupted);
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
    int fd() const { return in_.fd(); }  // readable when a waiting receiver has something to do

  private:
    bool ended(std::uint64_t wanted) const;
    bool broken() const;

    std::shared_ptr<Port> port_;
    std::shared_ptr<protocol::Connection> connection_;
    Event in_, out_;
    bool closed_ = false;
    std::uint64_t begun_ = 0;
};

}  // namespace genie::dpdk
