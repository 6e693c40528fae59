// Where the bytes of values lie that left their device: host memory, or a file that has no name.
#pragma once

#include <c10/core/Device.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "account.h"

namespace genie_local {

class Swap;
using SwapPtr = std::shared_ptr<Swap>;

// One storage's bytes. Destroying it gives its place back.
class Swapped {
 public:
  Swapped(SwapPtr swap, AccountPtr account, void* memory, int file, size_t size)
      : swap_(std::move(swap)), account_(std::move(account)), memory_(memory), file_(file), size_(size) {}
  ~Swapped();
  Swapped(const Swapped&) = delete;
  Swapped& operator=(const Swapped&) = delete;

  void write(const void* data, c10::Device device);
  void read(void* data, c10::Device device) const;

 private:
  SwapPtr swap_;
  AccountPtr account_;  // whose share it is of; null: nobody's
  void* memory_;  // null: it is in the file
  int file_;
  size_t size_;
};

// At most `limit` bytes, of all devices of a process together. With a `directory` they lie in files there. A tenant whose
// memory is limited has the part of it that it has of these devices' memory.
class Swap : public std::enable_shared_from_this<Swap> {
 public:
  Swap(int64_t limit, std::string directory) : limit_(limit), directory_(std::move(directory)) {}

  // Values of a device with so much memory will come.
  void serve(int64_t memory) {
    memory_ += memory;
  }
  // Null: there is no room for so many bytes, or none of the `account`'s.
  std::unique_ptr<Swapped> take(size_t size, const AccountPtr& account = nullptr);
  // What an account may have.
  int64_t share(const Account& account) const;

  int64_t limit() const {
    return limit_;
  }
  int64_t used() const {
    return used_;
  }

 private:
  friend class Swapped;
  void give_back(size_t size, const AccountPtr& account) {
    used_ -= static_cast<int64_t>(size);
    if (account) {
      account->swap_back(static_cast<int64_t>(size));
    }
  }

  const int64_t limit_;
  const std::string directory_;
  std::atomic<int64_t> used_{0};
  std::atomic<int64_t> memory_{0};  // of the devices
};

// Between a device's memory and the host's; done when it returns.
void to_host(void* host, const void* data, size_t size, c10::Device device);
void to_device(void* data, const void* host, size_t size, c10::Device device);

}  // namespace genie_local
