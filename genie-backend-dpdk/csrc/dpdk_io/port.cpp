#include "port.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <rte_lcore.h>
#include <rte_pause.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <set>
#include <system_error>

#include "eal.h"

namespace genie::dpdk {

using protocol::Time;

namespace {

constexpr Time longest_sleep = 10 * protocol::millisecond;  // should a wake-up call be missed
constexpr Time grace = 500 * protocol::microsecond;  // how long after a thread that waits the port's own leaves it alone
constexpr Time retry = 50 * protocol::microsecond;  // to send, when the device had no room
constexpr Time long_wait = protocol::millisecond;
constexpr unsigned most_vain = 6;
constexpr int pauses = 16;  // between two polls in vain, when others may have the mutex
constexpr Time never = std::numeric_limits<Time>::max();

timespec span(Time time) {
    time = std::max<Time>(time, 0);
    return {.tv_sec = time / protocol::second, .tv_nsec = time % protocol::second};
}

Time clock_now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * protocol::second + now.tv_nsec;
}

// All ports of this process. None may poll while it ends and DPDK's libraries with it.
class Ports {
  public:
    static Ports& all() {
        static Ports* ports = new Ports;  // never destroyed: threads outlive static objects
        return *ports;
    }
    void add(Port* port) {
        std::lock_guard lock(mutex_);
        ports_.insert(port);
    }
    void remove(Port* port) {
        std::lock_guard lock(mutex_);
        ports_.erase(port);
    }

  private:
    Ports() {
        std::atexit([] {
            if (forked()) return;
            park_eal();
            std::lock_guard lock(all().mutex_);
            for (Port* port : all().ports_) port->halt();
        });
    }

    std::mutex mutex_;
    std::set<Port*> ports_;
};

}  // namespace

Event::Event() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

Event::~Event() { close(fd_); }

void Event::set() const { eventfd_write(fd_, 1); }

void Event::clear() const {
    eventfd_t count;
    eventfd_read(fd_, &count);
}

Descriptor::~Descriptor() { take(-1); }

void Descriptor::take(int fd) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
}

Port::Port(PortOptions options)
    : options_(std::move(options)), device_(options_.device, options_.arguments, options_.own, options_.gpu,
              options_.nic),
      endpoint_(options_.protocol, options_.memory), thread_([this] { serve(); }) {
    Ports::all().add(this);
}

Port::~Port() {
    Ports::all().remove(this);
    try {
        drain(protocol::second);
    } catch (const std::system_error&) {  // nothing to wait with
    }
    halt();
    if (options_.control >= 0) close(options_.control);
    for (const auto& [port, call] : calls_) close(call);
}

void Port::halt() {
    {
        std::lock_guard lock(mutex_);
        halted_ = true;
    }
    stop_ = true;
    doorbell_.set();
    if (thread_.joinable()) thread_.join();
}

void Port::forget() {
    if (options_.control >= 0) close(options_.control);
    for (const auto& [port, call] : calls_) close(call);
    options_.control = -1;  // others have these numbers then, and a child of the child forgets, too
    calls_.clear();
}

Time Port::now() const { return clock_now(); }

void Port::listen(std::shared_ptr<const Event> ready) {
    ready_ = std::move(ready);
    endpoint_.listen(ready_ != nullptr);
}

void Port::follow(const void* who, std::function<void()> call) {
    if (call)
        followers_[who] = std::move(call);
    else
        followers_.erase(who);
}

// --- polling --------------------------------------------------------------------------------------

bool Port::poll_once() {
    if (halted_) return false;
    const unsigned count = device_.receive(
        [&](protocol::Path path, protocol::Bytes packet, const protocol::Elsewhere& rest) {
            endpoint_.heard(path, packet, clock_now(), rest);
        },
        clock_now());
    if (device_.memory_failed()) endpoint_.device_failed();
    const Time now = clock_now();
    const bool late = now >= due_;
    if (late) endpoint_.tick(now);
    if (!count && !late && !backlog_) return false;
    transmit(now);
    tell();
    return count;
}

void Port::transmit(Time now) {
    if (halted_) return;
    if (device_.flush()) {
        bool any = false;
        endpoint_.send(now, [&](protocol::Path path, const protocol::Outgoing& out) {
            any = true;
            return device_.send(path, out, now);
        });
        device_.flush();
        if (any) wake_peer(now);
    }
    due_ = endpoint_.due();
    backlog_ = device_.waiting();
}

void Port::send_now() {
    transmit(clock_now());
    if (sleeping_) doorbell_.set();  // it sleeps by an older deadline
}

// A peer that hears nothing for a while sleeps until its control socket wakes it.
void Port::wake_peer(Time now) {
    if (options_.control >= 0 && now - last_sent_ > options_.spin / 2) {
        const char call = 0;
        (void)!::send(options_.control, &call, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    last_sent_ = now;
}

void Port::tell() {
    for (auto at = waiting_.begin(); at != waiting_.end();) {
        if ((*at)->ready()) {
            (*at)->event->set();
            at = waiting_.erase(at);
        } else {
            ++at;
        }
    }
    for (const auto& [who, call] : followers_) call();
    if (ready_ && endpoint_.has_ready()) ready_->set();
}

void Port::read_control(Time now) {
    if (gone_ || options_.control < 0) return;
    control_read_ = now;
    char calls[64];
    const ssize_t got = recv(options_.control, calls, sizeof calls, MSG_DONTWAIT);
    if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) return;
    std::lock_guard lock(mutex_);
    poll_once();  // what it sent before
    gone_ = true;
    let_go();
    endpoint_.path_lost(0);
    endpoint_.tick(clock_now());
    tell();
}

void Port::hold(std::uint16_t port, int call) {
    std::lock_guard lock(mutex_);
    device_.hold(port);
    calls_[port] = call;
    doorbell_.set();
}

void Port::release(std::uint16_t port) {
    std::lock_guard lock(mutex_);
    device_.release(port);
    if (auto held = calls_.extract(port)) close(held.mapped());
}

void Port::learn(std::uint32_t ip, const Mac& mac) {
    std::lock_guard lock(mutex_);
    device_.learn(ip, mac);
}

void Port::empty_calls() const {
    char said;
    for (const auto& [port, call] : calls_)
        while (recv(call, &said, sizeof said, MSG_DONTWAIT) >= 0 || errno == EINTR) {}
}

void Port::sleep() {
    const Time now = clock_now();
    const bool others = others_poll(now);
    const Time until_due = std::min(due_.load() - now, backlog_ ? retry : longest_sleep);
    const timespec most = span(others ? grace : until_due);
    std::vector<pollfd> watched = {{doorbell_.fd(), POLLIN, 0}, {gone_ ? -1 : options_.control, POLLIN, 0}};
    if (!others) {
        std::lock_guard lock(mutex_);
        for (const auto& [port, call] : calls_) watched.push_back({call, POLLIN, 0});
    }
    ppoll(watched.data(), watched.size(), &most, nullptr);
    if (watched[0].revents) doorbell_.clear();
    if (watched[1].revents) read_control(clock_now());
}

bool Port::others_poll(Time now) const { return spinners_ || now - app_polled_ < grace; }

void Port::serve() {
    rte_thread_register();
    Time active = clock_now();
    while (!stop_) {
        if (!others_poll(clock_now())) {
            bool any;
            {
                std::lock_guard lock(mutex_);
                any = poll_once();
            }
            const Time now = clock_now();
            if (any) active = now;
            if (now - control_read_ > protocol::millisecond) read_control(now);  // also while it never sleeps
            const bool busy = options_.busy && !gone_;  // then nothing comes any more
            if (busy && any) continue;
            if (busy || now - active < options_.spin) {
                // Not sched_yield: where cores are busy that gives ours away for milliseconds.
                for (int count = 0; count < pauses; ++count) rte_pause();
                continue;
            }
            sleeping_ = true;
            std::unique_lock lock(mutex_);
            empty_calls();
            any = poll_once();  // from now on the peer wakes us, and so do those who send
            lock.unlock();
            if (any) {
                sleeping_ = false;
                active = now;
                continue;
            }
        }
        sleep();
        sleeping_ = false;
        active = clock_now();
    }
    rte_thread_unregister();
}

// --- waiting --------------------------------------------------------------------------------------

// Polling itself saves a thread that waits two wake-ups. Where it is in vain (long work, busy cores) it would take the
// core from somebody: after each long wait, twice as many tries are left out.
bool Port::spin(std::unique_lock<std::mutex>& lock, const std::function<bool()>& ready, Time patience) {
    if (!options_.spin) return false;
    if (sit_out_) {
        --sit_out_;
        return false;
    }
    ++spinners_;
    Time now = clock_now();
    const Time until = now + std::min(options_.spin, patience);
    bool done = ready();
    for (; !done && now < until; now = clock_now()) {
        poll_once();
        done = ready();
        if (done) break;
        lock.unlock();
        rte_pause();
        lock.lock();
        done = ready();
    }
    app_polled_ = now;
    --spinners_;
    if (done) vain_ = 0;
    return done;
}

bool Port::wait(std::unique_lock<std::mutex>& lock, const Event& event, const std::function<bool()>& ready,
                const std::function<std::uint64_t()>& progress, Time patience,
                const std::function<void()>& interrupted) {
    if (ready()) return true;
    if (spin(lock, ready, patience)) return true;
    const Time began = clock_now();
    app_polled_ = 0;
    doorbell_.set();  // the port's thread polls again
    event.clear();
    std::uint64_t before = progress ? progress() : 0;
    Time until = patience == never ? never : clock_now() + patience;
    Waiting waiting{&event, ready};
    while (!ready()) {
        waiting_.push_back(&waiting);
        lock.unlock();
        pollfd watched{event.fd(), POLLIN, 0};
        const timespec most = until == never ? timespec{} : span(until - clock_now());
        const int woken = ppoll(&watched, 1, until == never ? nullptr : &most, nullptr);
        const bool signalled = woken < 0 && errno == EINTR;
        lock.lock();
        waiting_.remove(&waiting);
        event.clear();
        if (signalled) {
            lock.unlock();
            interrupted();
            lock.lock();
        }
        if (ready()) {
            // A short one would have been worth polling for, had both sides polled.
            vain_ = clock_now() - began < long_wait ? 0 : std::min(vain_ + 1, most_vain);
            sit_out_ = (1u << vain_) - 1;
            return true;
        }
        if (clock_now() < until) continue;
        const std::uint64_t after = progress ? progress() : 0;
        if (after == before) return false;
        before = after;
        until = clock_now() + patience;
    }
    return true;
}

void Port::drain(Time patience) {
    const auto drained = [&] { return gone_ || !endpoint_.delivering(); };
    std::unique_lock lock(mutex_);
    if (drained()) return;
    const Event event;
    wait(lock, event, drained, nullptr, patience, [] {});
}

}  // namespace genie::dpdk
