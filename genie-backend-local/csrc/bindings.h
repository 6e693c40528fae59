// The receiving side of genie.bindings: the same algorithm, touching only the words that change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace genie_local {

class Prediction {
 public:
  Prediction(size_t inputs, const std::vector<uint64_t>& parameters);

  // Advances the memory. Refused (protocol) on anything malformed, and then the memory is as before.
  void decode(const uint8_t* data, size_t size);

  const std::vector<uint64_t>& words() const {
    return last_;
  }
  // Indices of the words that differ from the execution before.
  const std::vector<uint32_t>& changed() const {
    return changed_;
  }

 private:
  std::vector<uint64_t> last_;
  std::vector<uint64_t> step_;
  std::vector<uint32_t> moving_;  // the words whose step is not zero
  std::vector<uint32_t> changed_;
  std::vector<std::pair<uint32_t, uint64_t>> surprises_;
};

}  // namespace genie_local
