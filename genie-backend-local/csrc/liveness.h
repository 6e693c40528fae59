// When a plan's values are needed last.
#pragma once

#include "plan.h"

namespace genie_local {

// After a value's last use it is released: what steps make, donated inputs, and all that a region takes.
void find_releases(Plan& plan, bool is_region);

}  // namespace genie_local
