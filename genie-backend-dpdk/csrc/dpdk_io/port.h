// A port: one device, its connections, and the thread that polls it.
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../protocol/endpoint.h"
#include "device.h"

namespace genie::dpdk {

class Event {  // an eventfd
  public:
    Event();
    ~Event();
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    void set() const;
    void clear() const;
    int fd() const { return fd_; }

  private:
    int fd_;
};

class Descriptor {  // a file's, closed at the end
  public:
    Descriptor() = default;
    ~Descriptor();
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    void take(int fd);  // instead of the one it has

  private:
    int fd_ = -1;
};

struct Waiting {  // by the port's mutex
    const Event* event;
    std::function<bool()> ready;
};

struct PortOptions {
    std::string device, arguments;  // DPDK's virtual device
    int control = -1;  // a stream socket to the peer process, which the port then owns: its end is the peer's
    std::optional<Addressing> own;  // on a network; none where the device leads to one peer
    std::optional<Nic> nic;  // where the device is one
    Gpu gpu;
    protocol::Options protocol;
    std::size_t memory = std::size_t{1} << 30;  // for the windows of all connections
    protocol::Time spin = 50 * protocol::microsecond;  // how long it polls after the last packet, before it sleeps
    bool busy = false;  // it never sleeps
};

// One mutex guards the device, the connections and who waits for them. Whoever holds it may poll: the port's own thread,
// or one that waits for something and would rather not be woken.
class Port {
  public:
    explicit Port(PortOptions options);
    ~Port();

    std::mutex& mutex() { return mutex_; }
    protocol::Endpoint& endpoint() { return endpoint_; }
    bool peer_gone() const { return gone_; }
    void listen(std::shared_ptr<const Event> ready);  // with the mutex: whom to tell of connections that came in
    void follow(const void* who, std::function<void()> call);  // with the mutex: call after each poll; null: no more
    void tell();  // with the mutex: who waits for what is so now
    void let_go() {  // with the mutex: of the memory of packets it could not send yet
        device_.discard();
        backlog_ = false;
    }
    void send_now();  // with the mutex: what there is to send goes out from this thread

    // With the mutex, which is released meanwhile: until `ready`, for `patience` at most, which starts again whenever
    // `progress` has changed (null: it does not). `interrupted`, called without the mutex after a signal, may throw.
    bool wait(std::unique_lock<std::mutex>& lock, const Event& event, const std::function<bool()>& ready,
              const std::function<std::uint64_t()>& progress, protocol::Time patience,
              const std::function<void()>& interrupted);

    protocol::Time now() const;
    // Waits, `patience` at most, until closed connections have delivered what was written.
    void drain(protocol::Time patience);
    // From then on nobody polls, and nothing comes or goes; who waits is not told.
    void halt();
    // What the device's driver talks with; closed once the device is gone.
    void keep(int line) { line_.take(line); }
    // In a child process: what a peer would take for this process' life.
    void forget();
    bool up() const { return device_.up(); }
    const std::shared_ptr<gpumem::GpuDevice>& gpu() const { return options_.gpu.memory; }
    bool splits() const { return device_.splits(); }
    int number() const { return device_.port(); }  // DPDK's
    // On a network: what comes to this UDP port is ours. `call`, which the port then owns, is readable when something has
    // come; nothing in it is looked at.
    void hold(std::uint16_t port, int call);
    void release(std::uint16_t port);
    void learn(std::uint32_t ip, const Mac& mac);  // as Link does

  private:
    void serve();
    bool poll_once();
    bool spin(std::unique_lock<std::mutex>& lock, const std::function<bool()>& ready, protocol::Time patience);
    bool others_poll(protocol::Time now) const;
    void transmit(protocol::Time now);
    void sleep();
    void read_control(protocol::Time now);
    void empty_calls() const;
    void wake_peer(protocol::Time now);

    PortOptions options_;
    Descriptor line_;  // before the device, which goes first
    Device device_;
    protocol::Endpoint endpoint_;
    std::mutex mutex_;
    std::list<Waiting*> waiting_;
    std::map<const void*, std::function<void()>> followers_;
    std::map<std::uint16_t, int> calls_;  // by UDP port
    std::shared_ptr<const Event> ready_;
    Event doorbell_;
    std::atomic<bool> stop_ = false, sleeping_ = false, gone_ = false;
    bool halted_ = false;  // by the mutex
    std::atomic<int> spinners_ = 0;
    std::atomic<protocol::Time> app_polled_ = 0;  // when a thread that waited polled last
    unsigned vain_ = 0, sit_out_ = 0;
    std::atomic<protocol::Time> due_ = 0;
    std::atomic<bool> backlog_ = false;  // the device had no room for all packets
    protocol::Time last_sent_ = 0, control_read_ = 0;
    std::thread thread_;
};

}  // namespace genie::dpdk
