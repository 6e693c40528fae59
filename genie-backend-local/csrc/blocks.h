// Host memory for values that arrive: large blocks are kept when they are freed, because the page faults of fresh
// memory cost more than receiving into it does.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>

namespace genie_local {

// A contiguous CPU tensor whose contents nobody has written yet. Of the memory of freed ones this process keeps at most
// `keep` bytes.
at::Tensor host_tensor(at::IntArrayRef shape, c10::ScalarType dtype, size_t keep);

// Give back what was kept for longer than that and not used.
void forget_blocks(double seconds);

// Bytes kept.
size_t kept_bytes();

// While any session is open, blocks are kept.
class KeepsBlocks {
 public:
  KeepsBlocks();
  ~KeepsBlocks();
  KeepsBlocks(const KeepsBlocks&) = delete;
  KeepsBlocks& operator=(const KeepsBlocks&) = delete;
  void stop();

 private:
  bool on_ = true;
};

}  // namespace genie_local
