// Executions of several sessions on one thread, side by side.
#pragma once

#include <exception>
#include <vector>

#include "products.h"
#include "run.h"

namespace genie_local {

// Does the steps of all: each by itself up to its next product, then that one together. What fails in one is the
// others' no concern. `errors` are what ended a run before its last step, null where nothing did.
void run_in_lockstep(
    Products& products, const std::vector<Session::Run*>& runs, std::vector<std::exception_ptr>& errors);

}  // namespace genie_local
