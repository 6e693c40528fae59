#include "eal.h"

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_log.h>
#include <rte_mbuf.h>

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
constexpr unsigned frames = 4095;

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

    void run(const std::function<void()>& job) {
        std::packaged_task<void()> task(job);
        auto done = task.get_future();
        {
            std::lock_guard lock(mutex_);
            tasks_.push_back(std::move(task));
        }
        changed_.notify_one();
        done.get();
    }

    bool started = false;
    rte_mempool* pool = nullptr;

  private:
    Eal() { std::thread([this] { serve(); }).detach(); }

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
};

void initialise(Eal& eal, std::vector<std::string> arguments) {
    if (!eal.started) {
        arguments.insert(arguments.begin(), "genie");
        std::vector<char*> words;
        for (auto& argument : arguments) words.push_back(argument.data());
        Log log;
        if (rte_eal_init(static_cast<int>(words.size()), words.data()) < 0) {
            const int error = rte_errno;
            const std::string said = log.last_line();
            throw std::runtime_error(said.empty() ? rte_strerror(error) : said);
        }
        eal.started = true;
        rte_log_set_global_level(RTE_LOG_CRIT);  // what goes wrong later is told by errors
    }
    if (!eal.pool) {
        eal.pool = rte_pktmbuf_pool_create("genie_frames", frames, 256, 0, room + RTE_PKTMBUF_HEADROOM, SOCKET_ID_ANY);
        if (!eal.pool) throw std::runtime_error(std::string("no memory for packets: ") + rte_strerror(rte_errno));
    }
}

}  // namespace

void start_eal(const std::vector<std::string>& arguments) {
    Eal& eal = Eal::only();
    eal.run([&] { initialise(eal, arguments); });
}

void on_eal(const std::function<void()>& job) { Eal::only().run(job); }
rte_mempool* frame_pool() { return Eal::only().pool; }
unsigned frame_room() { return room; }

}  // namespace genie::dpdk
