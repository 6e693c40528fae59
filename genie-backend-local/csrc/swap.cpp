#include "swap.h"

#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "refused.h"

namespace genie_local {
namespace {

constexpr size_t piece = size_t{8} << 20;  // of a file and a device that is not the host: through a buffer of this size

at::Tensor bytes_at(void* data, size_t size, c10::Device device) {
  return at::from_blob(
      data,
      {static_cast<int64_t>(size)},
      at::TensorOptions().dtype(c10::kByte).device(device));
}

[[noreturn]] void lost(const char* what) {
  throw Refused(Refusal::node, std::string("the swap file cannot be ") + what + ": " + std::strerror(errno));
}

void write_at(int file, const char* data, size_t size, size_t offset) {
  while (size > 0) {
    const auto done = pwrite(file, data, size, static_cast<off_t>(offset));
    if (done == 0) {
      errno = ENOSPC;
    }
    if (done <= 0 && errno != EINTR) {
      lost("written");
    }
    const auto moved = static_cast<size_t>(std::max<ssize_t>(done, 0));
    data += moved;
    offset += moved;
    size -= moved;
  }
}

void read_at(int file, char* data, size_t size, size_t offset) {
  while (size > 0) {
    const auto done = pread(file, data, size, static_cast<off_t>(offset));
    if (done == 0) {
      errno = EIO;
    }
    if (done <= 0 && errno != EINTR) {
      lost("read");
    }
    const auto moved = static_cast<size_t>(std::max<ssize_t>(done, 0));
    data += moved;
    offset += moved;
    size -= moved;
  }
}

}  // namespace

void to_host(void* host, const void* data, size_t size, c10::Device device) {
  if (device.is_cpu()) {
    std::memcpy(host, data, size);
  } else {
    bytes_at(host, size, c10::kCPU).copy_(bytes_at(const_cast<void*>(data), size, device));
  }
}

void to_device(void* data, const void* host, size_t size, c10::Device device) {
  if (device.is_cpu()) {
    std::memcpy(data, host, size);
  } else {
    bytes_at(data, size, device).copy_(bytes_at(const_cast<void*>(host), size, c10::kCPU));
  }
}

int64_t Swap::share(const Account& account) const {
  const int64_t quota = account.limit();
  const int64_t memory = memory_;
  if (quota <= 0 || quota >= memory) {
    return limit_;
  }
  return static_cast<int64_t>(static_cast<double>(limit_) * static_cast<double>(quota) / static_cast<double>(memory));
}

std::unique_ptr<Swapped> Swap::take(size_t size, const AccountPtr& account) {
  const auto bytes = static_cast<int64_t>(size);
  if (account && !account->swap(bytes, share(*account))) {
    return nullptr;
  }
  auto used = used_.load();
  do {
    if (bytes > limit_ - used) {
      if (account) {
        account->swap_back(bytes);
      }
      return nullptr;
    }
  } while (!used_.compare_exchange_weak(used, used + bytes));
  void* memory = nullptr;
  int file = -1;
  if (directory_.empty()) {
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      give_back(size, account);
      return nullptr;
    }
    madvise(memory, size, MADV_HUGEPAGE);
  } else {
    file = open(directory_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    // All of its place now: a disk that is full is found before the value has left.
    if (file < 0 || posix_fallocate(file, 0, static_cast<off_t>(size)) != 0) {
      if (file >= 0) {
        close(file);
      }
      give_back(size, account);
      return nullptr;
    }
  }
  return std::make_unique<Swapped>(shared_from_this(), account, memory, file, size);
}

Swapped::~Swapped() {
  if (memory_ != nullptr) {
    munmap(memory_, size_);
  } else {
    close(file_);
  }
  swap_->give_back(size_, account_);
}

void Swapped::write(const void* data, c10::Device device) {
  if (memory_ != nullptr) {
    to_host(memory_, data, size_, device);
  } else if (device.is_cpu()) {
    write_at(file_, static_cast<const char*>(data), size_, 0);
  } else {
    std::vector<char> buffer(std::min(size_, piece));
    for (size_t at = 0; at < size_; at += buffer.size()) {
      const auto part = std::min(buffer.size(), size_ - at);
      to_host(buffer.data(), static_cast<const char*>(data) + at, part, device);
      write_at(file_, buffer.data(), part, at);
    }
  }
}

void Swapped::read(void* data, c10::Device device) const {
  if (memory_ != nullptr) {
    to_device(data, memory_, size_, device);
  } else if (device.is_cpu()) {
    read_at(file_, static_cast<char*>(data), size_, 0);
  } else {
    std::vector<char> buffer(std::min(size_, piece));
    for (size_t at = 0; at < size_; at += buffer.size()) {
      const auto part = std::min(buffer.size(), size_ - at);
      read_at(file_, buffer.data(), part, at);
      to_device(static_cast<char*>(data) + at, buffer.data(), part, device);
    }
  }
}

}  // namespace genie_local
