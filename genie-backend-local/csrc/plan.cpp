#include "plan.h"

#include <ATen/core/List.h>
#include <ATen/ops/scalar_tensor.h>

#include <cstring>

#include "refused.h"

namespace genie_local {
namespace {

c10::Scalar number_of(const Patch& patch, uint64_t word) {
  if (patch.is_float) {
    double number = 0;
    std::memcpy(&number, &word, sizeof(number));
    return number;
  }
  return static_cast<int64_t>(word);
}

}  // namespace

at::Tensor scalar_tensor(const c10::Scalar& number, c10::ScalarType dtype, bool wrapped) {
  auto tensor = at::scalar_tensor(number, at::TensorOptions().dtype(dtype).device(c10::kCPU));
  if (wrapped) {
    tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  }
  return tensor;
}

void Plan::receive(const uint8_t* bindings, size_t size) {
  prediction->decode(bindings, size);
  const size_t first = 1 + inputs.size();
  std::optional<Refused> refused;
  for (const auto word : prediction->changed()) {
    if (word >= first) {
      try {
        patch(word - first, prediction->words()[word]);
      } catch (const Refused& error) {
        // The others must arrive: only changes are sent.
        refused.emplace(error);
      }
    }
  }
  if (refused) {
    throw Refused(*refused);
  }
}

void Plan::patch(size_t parameter, uint64_t word) {
  const auto& patch = patches[parameter];
  if (patch.target == Patch::Target::nothing) {
    return;
  }
  const auto number = number_of(patch, word);
  auto& step = (patch.region < 0 ? steps : regions[static_cast<size_t>(patch.region)]->steps)[patch.step];
  auto& argument = step.arguments[patch.argument];
  auto& constant = argument.constant;
  switch (patch.target) {
    case Patch::Target::nothing:
      break;
    case Patch::Target::number:
      constant = number.isFloatingPoint() ? c10::IValue(number.toDouble()) : c10::IValue(number.toLong());
      break;
    case Patch::Target::real:
      constant = number.toDouble();
      break;
    case Patch::Target::list_number: {
      const auto list = constant.toList();
      list.set(patch.item, number.isFloatingPoint() ? c10::IValue(number.toDouble()) : c10::IValue(number.toLong()));
      break;
    }
    case Patch::Target::list_int: {
      const auto list = constant.toIntList();
      for (uint32_t i = 0; i < patch.repeat; ++i) {
        list.set(patch.item + i, number.toLong());
      }
      break;
    }
    case Patch::Target::list_real: {
      const auto list = constant.toDoubleList();
      for (uint32_t i = 0; i < patch.repeat; ++i) {
        list.set(patch.item + i, number.toDouble());
      }
      break;
    }
    case Patch::Target::tensor:
    case Patch::Target::list_tensor:
      try {
        if (patch.target == Patch::Target::list_tensor) {
          argument.scalars[patch.item] = scalar_tensor(number, patch.dtype, patch.wrapped);
        } else if (patch.dtype == c10::ScalarType::Long && !patch.is_float) {
          // Python's numbers are int64 and float64. Nobody else holds the tensor between executions.
          *constant.toTensor().mutable_data_ptr<int64_t>() = number.toLong();
        } else if (patch.dtype == c10::ScalarType::Double && patch.is_float) {
          *constant.toTensor().mutable_data_ptr<double>() = number.toDouble();
        } else {
          constant = scalar_tensor(number, patch.dtype, patch.wrapped);
        }
      } catch (const std::exception& error) {
        throw Refused(
            Refusal::protocol,
            "parameter " + std::to_string(parameter) + " of " + step.op->name + ": " +
                first_line(error.what()));
      }
      break;
  }
}

}  // namespace genie_local
