#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <system_error>

#include "memory.h"

namespace genie::gpumem {

namespace {

// An address range of its own, a multiple of a page.
std::byte* reserve(std::size_t bytes) {
    void* found = mmap(nullptr, bytes + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    auto* all = static_cast<std::byte*>(found);
    const std::size_t before = (page - reinterpret_cast<std::uintptr_t>(all) % page) % page;
    if (before) munmap(all, before);
    munmap(all + before + bytes, page - before);
    return all + before;
}

class Soft final : public Memory {
  public:
    Soft(std::size_t total, bool guarded) : total_(total), guarded_(guarded) {}
    ~Soft() override {
        for (const auto& [at, piece] : pieces_) unmap(at, piece);
    }

    std::string name() const override { return guarded_ ? "soft_guarded" : "soft"; }
    std::size_t total() const override { return total_; }
    bool readable() const override { return !guarded_; }

    std::byte* allocate(std::size_t bytes) override {
        if (bytes > total_) throw std::bad_alloc();
        bytes = whole_pages(bytes);
        std::lock_guard lock(mutex_);
        if (bytes > total_ - used_) throw std::bad_alloc();
        const int file = memfd_create("genie-soft-device", MFD_CLOEXEC);
        if (file < 0) throw std::system_error(errno, std::generic_category(), "memfd_create");
        std::byte* at = nullptr;
        void* inside = MAP_FAILED;
        try {
            if (ftruncate(file, static_cast<off_t>(bytes))) throw std::bad_alloc();
            at = reserve(bytes);
            const int access = guarded_ ? PROT_NONE : PROT_READ | PROT_WRITE;
            if (mmap(at, bytes, access, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) throw std::bad_alloc();
            if (guarded_) {
                inside = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
                if (inside == MAP_FAILED) throw std::bad_alloc();
            }
            pieces_[at] = {bytes, guarded_ ? static_cast<std::byte*>(inside) : at};
        } catch (...) {
            if (at) munmap(at, bytes);
            if (inside != MAP_FAILED) munmap(inside, bytes);
            close(file);
            throw;
        }
        close(file);  // the mappings keep it
        used_ += bytes;
        return at;
    }

    void release(std::byte* at) override {
        std::lock_guard lock(mutex_);
        const auto found = pieces_.find(at);
        if (found == pieces_.end()) throw std::invalid_argument("no memory of this device begins there");
        unmap(at, found->second);
        used_ -= found->second.bytes;
        pieces_.erase(found);
    }

    void copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept override {
        std::lock_guard lock(mutex_);
        auto* target = const_cast<std::byte*>(inside(to, bytes));
        const std::byte* source = inside(from, bytes);
        if (target && source)
            std::memcpy(target, source, bytes);
        else
            failed_ = true;
    }

    bool finish() noexcept override {
        std::lock_guard lock(mutex_);
        return !failed_;
    }

    void admit(std::byte*, std::size_t) override {}  // it is memory of the host's itself
    void dismiss(std::byte*) override {}

  private:
    struct Piece {
        std::size_t bytes = 0;
        std::byte* inside = nullptr;
    };

    void unmap(std::byte* at, const Piece& piece) const {
        munmap(at, piece.bytes);
        if (guarded_) munmap(piece.inside, piece.bytes);
    }

    // Where the device has it; null for what goes beyond its memory's end; as it is for memory of the host's.
    const std::byte* inside(const std::byte* at, std::size_t bytes) const {
        auto after = pieces_.upper_bound(const_cast<std::byte*>(at));
        if (after == pieces_.begin()) return at;
        const auto& [start, piece] = *std::prev(after);
        if (at >= start + piece.bytes) return at;
        const auto offset = static_cast<std::size_t>(at - start);
        return bytes <= piece.bytes - offset ? piece.inside + offset : nullptr;
    }

    const std::size_t total_;
    const bool guarded_;
    std::mutex mutex_;
    std::map<std::byte*, Piece> pieces_;
    std::size_t used_ = 0;
    bool failed_ = false;
};

}  // namespace

std::unique_ptr<Memory> soft_memory(std::size_t total, bool guarded) { return std::make_unique<Soft>(total, guarded); }

}  // namespace genie::gpumem
