#include "blocks.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <iterator>
#include <list>
#include <mutex>
#include <utility>

namespace genie_local {
namespace {

constexpr size_t smallest = 1 << 20;  // below, malloc reuses memory well enough
constexpr size_t granule = 1 << 16;
constexpr size_t huge_page = 2 << 20;

using Clock = std::chrono::steady_clock;
constexpr auto longest_fault = std::chrono::milliseconds(1);
constexpr size_t probed = 16 * huge_page;

struct Block {
  void* data = nullptr;
  size_t size = 0;
  size_t keep = 0;  // most bytes to be kept together with this one
  Clock::time_point since;  // when it was freed
};

void release(const std::list<Block>& blocks) {
  for (const auto& block : blocks) {
    munmap(block.data, block.size);
  }
}

// Huge pages, if the kernel has them at hand: where it must make them first, that takes far longer than all the faults
// of small ones. The first few tell; no more is touched before there is anything to be written.
void choose_pages(void* data, size_t size) {
  if (size < 2 * huge_page || madvise(data, size, MADV_HUGEPAGE) != 0) {
    return;
  }
  auto* const bytes = static_cast<volatile char*>(data);
  int slow = 0;
  auto before = Clock::now();
  for (size_t at = 0; at < size && at < probed; at += huge_page) {
    bytes[at] = 0;
    const auto now = Clock::now();
    if (now - before > longest_fault && ++slow == 2) {
      madvise(static_cast<char*>(data) + at, size - at, MADV_NOHUGEPAGE);
      return;
    }
    before = now;
  }
}

class Blocks {
 public:
  // Freed memory of about this size, the one freed last first; else new. No data: there is no memory.
  Block take(size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto found = kept_.rbegin(); found != kept_.rend(); ++found) {
        if (found->size >= size && found->size - size <= size / 4) {
          const Block block = *found;
          kept_.erase(std::next(found).base());
          bytes_ -= block.size;
          return block;
        }
      }
    }
    size = (size + granule - 1) / granule * granule;
    auto* data = map(size);
    if (data == MAP_FAILED) {
      forget(Clock::duration::zero());
      data = map(size);
    }
    if (data == MAP_FAILED) {
      return {};
    }
    choose_pages(data, size);
    return {data, size};
  }

  void put(Block block) {
    std::list<Block> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      block.since = Clock::now();
      if (users_ == 0 || block.size > block.keep) {
        gone.push_back(block);
      } else {
        while (bytes_ + block.size > block.keep) {
          drop_oldest(gone);
        }
        kept_.push_back(block);
        bytes_ += block.size;
      }
    }
    release(gone);
  }

  void forget(Clock::duration older_than) {
    std::list<Block> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto now = Clock::now();
      while (!kept_.empty() && now - kept_.front().since >= older_than) {
        drop_oldest(gone);
      }
    }
    release(gone);
  }

  void use(int more) {
    bool idle = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      users_ += more;
      idle = users_ == 0;
    }
    if (idle) {
      forget(Clock::duration::zero());
    }
  }

  size_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

 private:
  static void* map(size_t size) {
    return mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }

  void drop_oldest(std::list<Block>& gone) {
    bytes_ -= kept_.front().size;
    gone.splice(gone.end(), kept_, kept_.begin());
  }

  std::mutex mutex_;
  std::list<Block> kept_;  // freed longest ago first
  size_t bytes_ = 0;
  int users_ = 0;
};

Blocks& blocks() {
  static auto* all = new Blocks;  // never freed: tensors may outlive everything
  return *all;
}

void put_back(void* context) {
  auto* block = static_cast<Block*>(context);
  blocks().put(*block);
  delete block;
}

}  // namespace

at::Tensor host_tensor(at::IntArrayRef shape, c10::ScalarType dtype, size_t keep) {
  const auto size = at::detail::computeStorageNbytesContiguous(shape, c10::elementSize(dtype));
  const auto options = at::TensorOptions().dtype(dtype);
  if (size < smallest) {
    return at::empty(shape, options);
  }
  auto block = blocks().take(size);
  TORCH_CHECK_WITH(OutOfMemoryError, block.data != nullptr, "no memory for ", size, " bytes");
  block.keep = keep;
  c10::Storage storage(
      c10::Storage::use_byte_size_t(),
      size,
      c10::DataPtr(block.data, new Block(block), &put_back, c10::kCPU),
      c10::GetCPUAllocator(),
      /*resizable=*/true);
  auto tensor = at::empty({0}, options);
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(shape);
  return tensor;
}

void forget_blocks(double seconds) {
  blocks().forget(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
}

size_t kept_bytes() {
  return blocks().bytes();
}

KeepsBlocks::KeepsBlocks() {
  blocks().use(+1);
}

KeepsBlocks::~KeepsBlocks() {
  stop();
}

void KeepsBlocks::stop() {
  if (std::exchange(on_, false)) {
    blocks().use(-1);
  }
}

}  // namespace genie_local
