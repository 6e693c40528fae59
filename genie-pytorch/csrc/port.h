// The way out: what the recorder asks of the engine the application connected (see genie.interfaces.Engine).
#pragma once

#include "value.h"

#include <string>
#include <utility>
#include <vector>

namespace genie {

struct Segment;

// All of these take the GIL themselves. Errors of the engine come out as the Python exceptions they are.
namespace port {

// The segment as a plan the engine has loaded: the plan's id, and the number of the graph it was made from.
std::pair<int64_t, int64_t> prepare(int16_t device, const Segment& segment, const std::vector<uint32_t>& outputs, bool whole);
// `look`: the program is about to look at a value, so this may travel with the question.
void execute(int16_t device, int64_t plan, const std::string& bindings, bool look);
void execute_words(int16_t device, int64_t plan, const std::vector<uint64_t>& words, bool look);
void upload(int16_t device, uint64_t handle, const Spec& spec, const void* data, size_t nbytes, bool weight);
void fetch(int16_t device, uint64_t handle, void* data, size_t nbytes);
Spec describe(int16_t device, uint64_t handle);
void free(int16_t device, const std::vector<uint64_t>& handles);
void seed(int16_t device, uint32_t generator, uint64_t seed);
std::string generator_state(int16_t device, uint32_t generator);
void set_generator_state(int16_t device, uint32_t generator, const std::string& state);
void synchronize(int16_t device);
// Told of a look, with what was looked at and how; for counters and warnings.
void looked(int16_t device, const std::string& what);
void warn_mixed(const std::string& op);
// Raises genie.errors.UnsupportedOperation, with the user's line.
[[noreturn]] void refuse(const std::string& op, const std::string& reason);
// Raises genie.errors.SessionClosed: a tensor of an earlier life of the device was used.
[[noreturn]] void ended(int16_t device);
bool connected(int16_t device);
// Where tensors go that name no index; connects, if that is what it takes to know.
int default_device();

} // namespace port

} // namespace genie
