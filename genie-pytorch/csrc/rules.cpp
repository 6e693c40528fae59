#include "rules.h"

namespace genie {

bool apply_rule(const Operator&, const torch::jit::Stack&, Inferred&) {
  return false;
}

} // namespace genie
