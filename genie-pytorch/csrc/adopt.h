// Tensors and memory that were made around the dispatcher.
#pragma once

#include "stream.h"

namespace genie {

// Makes a tensor ready to be an operand in `stream`: sends what other streams have pending on its memory, and
// finds a value for a tensor that was made around the dispatcher. May send or throw; writing does neither.
void touch(Stream& stream, const at::Tensor& tensor);

// Gives a tensor that has none a value: a new tensor on the node, set to the memory its storage stands for.
void adopt(Stream& stream, const at::Tensor& tensor);

// The value of memory that the allocator makes.
ValuePtr make_root(int64_t nbytes, int16_t device);

} // namespace genie
