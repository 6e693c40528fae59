#pragma once

namespace genie {

// Makes the device known to PyTorch, with this many indices; again when the cluster's size is learned.
void register_device(int count);

void register_operators();

} // namespace genie
