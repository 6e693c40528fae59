// Which attention kernel a CPU picks: it decides the layout of the result, and what backward differentiates.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace genie {

bool host_attention_is_fused(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const std::optional<at::Tensor>& mask,
    double dropout,
    bool causal,
    std::optional<double> scale,
    bool grouped);

} // namespace genie
