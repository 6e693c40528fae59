#include "compiled_module.h"

#include <pybind11/stl.h>

#include "compiled.h"
#include "names.h"

namespace genie_local {
namespace {

c10::ScalarType dtype_of(const std::string& name) {
  const auto dtype = dtype_named(name);
  if (!dtype) {
    throw Refused(Refusal::node, "no dtype is called '" + name + "'");
  }
  return *dtype;
}

std::vector<Face> to_faces(const Faces& given) {
  std::vector<Face> faces;
  faces.reserve(given.size());
  for (const auto& [shape, dtype, carried] : given) {
    faces.push_back({shape, dtype_of(dtype), dtype_of(carried)});
    if (c10::elementSize(faces.back().dtype) != c10::elementSize(faces.back().carried)) {
      throw Refused(Refusal::plan, dtype + " cannot be carried as " + carried);
    }
  }
  return faces;
}

}  // namespace

void load_compiled(
    Session& session,
    int64_t id,
    const std::string& name,
    pybind11::object program,
    int64_t bytes,
    const std::vector<bool>& donated,
    const std::vector<int32_t>& takes,
    const Faces& operands,
    const Faces& results,
    std::vector<uint64_t> parameters) {
  if (operands.size() != takes.size()) {
    throw Refused(Refusal::plan, "a compiled program takes other operands than its plan gives it");
  }
  auto compiled = std::make_shared<Compiled>(std::move(program), bytes, to_faces(operands), to_faces(results));
  auto plan = compiled_plan(name, donated, takes, std::move(parameters), results.size(), std::move(compiled));
  const pybind11::gil_scoped_release no_gil;
  session.load(id, std::move(plan));
}

}  // namespace genie_local
