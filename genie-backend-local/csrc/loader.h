// From the Python graph (genie.graph.Graph) to a Plan.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "plan.h"

namespace genie_local {

// Refused (plan) names the step and what is wrong with it. Needs the GIL.
std::shared_ptr<Plan> load_plan(const pybind11::handle& graph, c10::Device device);

}  // namespace genie_local
