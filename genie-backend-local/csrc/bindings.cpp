#include "bindings.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "refused.h"

namespace genie_local {
namespace {

class Varints {
 public:
  Varints(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}

  uint64_t read() {
    uint64_t number = 0;
    for (int shift = 0;; shift += 7) {
      if (next_ == end_ || shift > 63) {
        throw Refused(Refusal::protocol, "bindings are cut short");
      }
      const uint8_t byte = *next_++;
      number |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) {
        return number;
      }
    }
  }

  size_t left() const {
    return static_cast<size_t>(end_ - next_);
  }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
};

std::string size_error(const char* what, uint64_t number, size_t words) {
  return "bindings name " + std::string(what) + std::to_string(number) + ", the plan has " + std::to_string(words) +
      " words";
}

}  // namespace

Prediction::Prediction(size_t inputs, const std::vector<uint64_t>& parameters) : last_(1 + inputs, 0) {
  last_.insert(last_.end(), parameters.begin(), parameters.end());
  step_.resize(last_.size(), 0);
}

void Prediction::decode(const uint8_t* data, size_t size) {
  Varints varints(data, size);
  const uint64_t count = varints.read();
  if (count == last_.size() + 1) {
    // Every word as it is: the sender relies on no memory.
    std::vector<uint64_t> words(last_.size());
    for (auto& word : words) {
      word = varints.read();
    }
    if (varints.left() != 0) {
      throw Refused(Refusal::protocol, std::to_string(varints.left()) + " bytes after the bindings");
    }
    last_ = std::move(words);
    std::fill(step_.begin(), step_.end(), 0);
    moving_.clear();
    changed_.resize(last_.size());
    std::iota(changed_.begin(), changed_.end(), 0u);
    return;
  }
  if (count > last_.size()) {
    throw Refused(Refusal::protocol, size_error("a count of ", count, last_.size()));
  }
  surprises_.clear();
  uint64_t index = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t gap = varints.read();
    const uint64_t zigzag = varints.read();
    if (gap >= last_.size() - index) {
      throw Refused(Refusal::protocol, size_error("a word after ", index, last_.size()));
    }
    index += gap;
    surprises_.emplace_back(static_cast<uint32_t>(index), (zigzag >> 1) ^ (~(zigzag & 1) + 1));
    ++index;
  }
  if (varints.left() != 0) {
    throw Refused(Refusal::protocol, std::to_string(varints.left()) + " bytes after the bindings");
  }

  for (const auto& [word, surprise] : surprises_) {
    if (step_[word] == 0) {
      moving_.push_back(word);
    }
    step_[word] += surprise;
  }
  changed_.clear();
  size_t kept = 0;
  for (const uint32_t word : moving_) {
    if (step_[word] != 0) {
      last_[word] += step_[word];
      changed_.push_back(word);
      moving_[kept++] = word;
    }
  }
  moving_.resize(kept);
}

}  // namespace genie_local
