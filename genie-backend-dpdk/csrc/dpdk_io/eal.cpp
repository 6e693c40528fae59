#include "eal.h"

#include <pthread.h>
#include <unistd.h>

#include <rte_alarm.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_log.h>
#include <rte_mbuf.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <future>
#include <mutex>
#include <stdexcept>
#include <thread>

namespace genie::dpdk {

namespace {

constexpr unsigned room = 8448;  // a frame of 8,192 bytes of the stream, in whole cache lines
constexpr unsigned frames = 8191;
constexpr unsigned cached = 32;  // by each thread that polls: with one for each port, they must not have them all

std::atomic<bool> in_child = false;

// What DPDK logs while it starts: its reason, when it fails.
class Log {
  public:
    Log() : stream_(open_memstream(&text_, &size_)) { rte_openlog_stream(stream_); }
    ~Log() {
        rte_openlog_stream(nullptr);
        std::fclose(stream_);
        std::free(text_);
    }
    std::string last_line() {
        std::fflush(stream_);
        std::string text(text_, size_);
        while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
        return text.substr(text.rfind('\n') + 1);
    }

  private:
    char* text_ = nullptr;
    std::size_t size_ = 0;
    FILE* stream_;
};

class Eal {
  public:
    static Eal& only() {
        static Eal* eal = new Eal;  // never destroyed: DPDK's own threads outlive static objects
        return *eal;
    }

    std::future<void> begin(std::function<void()> job) {
        std::packaged_task<void()> task(std::move(job));
        auto done = task.get_future();
        {
            std::lock_guard lock(mutex_);
            tasks_.push_back(std::move(task));
        }
        changed_.notify_one();
        return done;
    }

    void run(const std::function<void()>& job) {
        if (std::this_thread::get_id() == thread_.get_id()) return job();
        begin(job).get();
    }

    bool started = false;
    std::string failure;
    bool spent = false;  // it failed, and can't be tried again
    rte_mempool* pool = nullptr;

  private:
    Eal() : thread_([this] { serve(); }) {
        pthread_atfork(nullptr, nullptr, [] { in_child = true; });
    }

    [[noreturn]] void serve() {
        for (;;) {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [this] { return !tasks_.empty(); });
            auto task = std::move(tasks_.front());
            tasks_.pop_front();
            lock.unlock();
            task();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::packaged_task<void()>> tasks_;
    std::thread thread_;  // last: it uses the rest
};

void initialise(Eal& eal, std::vector<std::string> arguments) {
    if (eal.spent) throw std::runtime_error(eal.failure);
    if (!eal.started) {
        arguments.insert(arguments.begin(), "genie");
        std::vector<char*> words;
        for (auto& argument : arguments) words.push_back(argument.data());
        Log log;
        if (rte_eal_init(static_cast<int>(words.size()), words.data()) < 0) {
            const int error = rte_errno;
            const std::string said = log.last_line();
            eal.failure = said.empty() ? rte_strerror(error) : said;
            // It takes arguments that it has understood once no second time, and would say so instead of the reason.
            eal.spent = error != EINVAL || said.find("command line") == std::string::npos;
            throw std::runtime_error(eal.failure);
        }
        eal.started = true;
        rte_log_set_global_level(RTE_LOG_CRIT);  // what goes wrong later is told by errors
    }
    if (!eal.pool) {
        eal.pool =
            rte_pktmbuf_pool_create("genie_frames", frames, cached, 0, room + RTE_PKTMBUF_HEADROOM, SOCKET_ID_ANY);
        if (!eal.pool) throw std::runtime_error(std::string("no memory for packets: ") + rte_strerror(rte_errno));
    }
}

}  // namespace

void start_eal(const std::vector<std::string>& arguments) {
    if (forked()) throw std::runtime_error("this process was forked from one that uses DPDK, and DPDK is in that one");
    Eal& eal = Eal::only();
    eal.run([&] { initialise(eal, arguments); });
}

bool forked() { return in_child; }

void on_eal(const std::function<void()>& job) {
    Eal::only().run([&] {
        std::packaged_task<void()> task(job);
        auto done = task.get_future();
        const auto call = [](void* given) { (*static_cast<std::packaged_task<void()>*>(given))(); };
        if (int error = rte_eal_alarm_set(1, call, &task))
            throw std::runtime_error(std::string("DPDK's interrupt thread takes no work: ") + rte_strerror(-error));
        done.get();
    });
}

void on_main(const std::function<void()>& job) { Eal::only().run(job); }

void later(std::function<void()> job) { Eal::only().begin(std::move(job)); }

void park_eal() {
    std::promise<void> parked;
    later([&] {
        parked.set_value();
        for (;;) pause();
    });
    parked.get_future().wait();
}

rte_mempool* frame_pool() { return Eal::only().pool; }
unsigned frames_in_use() { return frame_pool() ? rte_mempool_in_use_count(frame_pool()) : 0; }
unsigned frame_room() { return room; }

}  // namespace genie::dpdk
