// Products of several executions by one weight: what may be done together, and how it is done best.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <array>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "plan.h"

namespace genie_local {

// Finds what executions of the plan may do together with others: `products` and `weights`.
void find_products(Plan& plan);

// One execution's share of a product.
struct Part {
  std::vector<c10::IValue> operands;
  at::Tensor result;  // contiguous, to be filled
};

enum class Way : uint8_t {
  each,  // one after the other: a small weight is still in the cache
  blocks,  // by blocks of the weight that fit the cache, one after the other for each block
  stacked,  // one product of all rows; other kernels may serve it, so the last bits may differ
};

// Ways are tried, and the quickest is taken from then on. Thread-safe.
class Products {
 public:
  explicit Products(bool exact);

  // What decides which way is best, and what was seen of it.
  struct Trial;
  struct Choice {
    Way way = Way::each;
    Trial* trial = nullptr;
  };

  // Whether the two multiply by the same memory, and may do so together.
  static bool alike(const Product& product, const Part& one, const Part& other);
  // Whether this one may be done together with others at all.
  static bool fits(const Product& product, const Part& part);

  Choice choose(const Step& step, const Product& product, const std::vector<Part>& parts);
  // Fills the results; not for Way::each.
  void fill(const Choice& choice, const Step& step, const Product& product, std::vector<Part>& parts);
  void took(const Choice& choice, double seconds);

 private:
  struct Hash {
    size_t operator()(const std::vector<int64_t>& words) const;
  };
  bool stackable(const Product& product, const std::vector<Part>& parts) const;
  bool blocks_are_exact(const Choice& choice, const Step& step, const Part& part);

  const bool exact_;
  std::mutex lock_;
  std::unordered_map<std::vector<int64_t>, std::unique_ptr<Trial>, Hash> trials_;
};

}  // namespace genie_local
