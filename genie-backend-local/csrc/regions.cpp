#include "regions.h"

#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <c10/util/ScopeExit.h>
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "run.h"

// Schemas alone: what a region operator computes is in its plan. The regions themselves are no arguments here.
TORCH_LIBRARY_FRAGMENT(genie, library) {
  library.def("cond(Tensor predicate, Tensor[] operands) -> Tensor[]");
  library.def("while_loop(Tensor[] carried, Tensor[] additional) -> Tensor[]");
  library.def("scan(Tensor[] init, Tensor[] xs, Tensor[] additional, int length, bool reverse) -> Tensor[]");
}

namespace genie_local {
namespace {

using Tensors = std::vector<at::Tensor>;

bool is_true(const at::Tensor& tensor, const char* what) {
  TORCH_CHECK(
      tensor.defined() && tensor.numel() == 1 && tensor.scalar_type() == at::kBool,
      what, " has to be one element of dtype bool");
  return tensor.item<bool>();
}

void append(Tensors& all, const Tensors& more) {
  all.insert(all.end(), more.begin(), more.end());
}

const void* storage_of_result(const at::Tensor& tensor) {
  return tensor.defined() && tensor.has_storage() ? tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl()
                                                  : nullptr;
}

}  // namespace

bool is_regional(const std::string& operation) {
  return operation == "genie::cond" || operation == "genie::while_loop" || operation == "genie::scan";
}

// The slots of one region, kept from iteration to iteration.
struct Session::Run::Frame {
  explicit Frame(Plan& plan) : plan(plan), own(plan.values), slots(plan.values, nullptr) {}

  Plan& plan;
  std::vector<Holder> own;
  std::vector<Holder*> slots;

  void exchange(Session& session) {
    std::swap(own, session.own_);
    std::swap(slots, session.slots_);
  }
};

class Session::Run::Regions {
 public:
  Regions(Run& run, const Step& step) : run_(run), session_(run.session_), step_(step) {}

  void call() {
    auto& stack = session_.stack_;
    const std::vector<c10::IValue> given(std::make_move_iterator(stack.begin()), std::make_move_iterator(stack.end()));
    stack.clear();
    Tensors results;
    switch (step_.regional->kind) {
      case RegionKind::cond:
        results = cond(given[0].toTensor(), given[1].toTensorVector());
        break;
      case RegionKind::while_loop:
        results = while_loop(given[0].toTensorVector(), given[1].toTensorVector());
        break;
      case RegionKind::scan:
        results = scan(
            given[0].toTensorVector(), given[1].toTensorVector(), given[2].toTensorVector(), given[3].toInt(),
            given[4].toBool());
        break;
    }
    make_fresh(results, given);
    stack.clear();
    stack.emplace_back(c10::List<at::Tensor>(results));
  }

 private:
  Plan& plan(size_t region) const {
    return *step_.regional->plans[region];
  }

  Tensors cond(const at::Tensor& predicate, Tensors operands) {
    const auto branches = static_cast<int64_t>(step_.regional->plans.size());
    TORCH_CHECK(predicate.defined() && predicate.numel() == 1, "the predicate of a cond has to be one element");
    int64_t chosen = 0;
    if (predicate.scalar_type() == at::kBool) {
      TORCH_CHECK(branches == 2, "a predicate of dtype bool chooses between two branches, not ", branches);
      chosen = predicate.item<bool>() ? 0 : 1;
    } else {
      TORCH_CHECK(
          c10::isIntegralType(predicate.scalar_type(), false),
          "the predicate of a cond has to be of dtype bool or of an integer one");
      chosen = predicate.item<int64_t>();
      TORCH_CHECK_INDEX(0 <= chosen && chosen < branches, "there is no branch ", chosen, ": a cond has ", branches);
    }
    Frame frame(plan(static_cast<size_t>(chosen)));
    return once(frame, std::move(operands), [&] { return "branch " + std::to_string(chosen); });
  }

  Tensors while_loop(Tensors carried, const Tensors& additional) {
    Frame condition(plan(0));
    Frame body(plan(1));
    for (int64_t iteration = 0;; ++iteration) {
      auto taken = carried;
      append(taken, additional);
      const auto said =
          once(condition, taken, [&] { return "condition, iteration " + std::to_string(iteration); });
      TORCH_CHECK(said.size() == 1, "the condition of a loop gives ", said.size(), " values");
      if (!is_true(said[0], "what the condition of a loop gives")) {
        return carried;
      }
      const auto count = carried.size();
      carried.clear();  // the body may let go of what it carries on
      carried = once(body, std::move(taken), [&] { return in_body(iteration); });
      TORCH_CHECK(carried.size() == count, "the body of a loop gives ", carried.size(), " values, not ", count);
    }
  }

  Tensors scan(Tensors carried, const Tensors& xs, const Tensors& additional, int64_t length, bool reverse) {
    TORCH_CHECK(length >= 0, "a scan of length ", length);
    for (const auto& x : xs) {
      TORCH_CHECK(
          x.dim() > 0 && x.size(0) == length, "a scan of length ", length, " takes slices of a tensor of sizes ",
          x.sizes());
    }
    const auto count = carried.size();
    const auto& given = step_.regional->given;
    TORCH_CHECK(given.size() >= count, "the body of a scan gives ", given.size(), " values, ", count, " are carried");
    Tensors stacked(given.size() - count);
    Frame body(plan(0));
    for (int64_t iteration = 0; iteration < length; ++iteration) {
      const auto at = reverse ? length - 1 - iteration : iteration;
      auto taken = std::move(carried);
      for (const auto& x : xs) {
        taken.push_back(x.select(0, at));
      }
      append(taken, additional);
      carried = once(body, std::move(taken), [&] { return in_body(iteration); });
      for (size_t k = 0; k < stacked.size(); ++k) {
        put(stacked[k], carried[count + k], at, length);
      }
      carried.resize(count);
    }
    for (size_t k = 0; length == 0 && k < stacked.size(); ++k) {
      auto shape = given[count + k].shape;
      shape.insert(shape.begin(), 0);
      stacked[k] = at::empty(shape, at::TensorOptions().dtype(given[count + k].dtype).device(session_.device_));
    }
    append(carried, stacked);
    return carried;
  }

  static void put(at::Tensor& stacked, const at::Tensor& slice, int64_t at, int64_t length) {
    if (!stacked.defined()) {
      auto sizes = slice.sizes().vec();
      sizes.insert(sizes.begin(), length);
      stacked = at::empty(sizes, slice.options().memory_format(c10::MemoryFormat::Contiguous));
    }
    const auto there = stacked.select(0, at);
    TORCH_CHECK(
        there.sizes() == slice.sizes() && there.scalar_type() == slice.scalar_type(),
        "the body of a scan gives a tensor of sizes ", slice.sizes(), " where it gave one of sizes ", there.sizes(),
        " before, or of another dtype");
    there.copy_(slice);
  }

  static std::string in_body(int64_t iteration) {
    return "body, iteration " + std::to_string(iteration);
  }

  // The region, run on these values. `where` says which, for errors.
  template <class Where>
  Tensors once(Frame& frame, Tensors taken, Where&& where) {
    auto& region = frame.plan;
    TORCH_CHECK(
        taken.size() == region.inputs.size(), "a region takes ", region.inputs.size(), " values, not ", taken.size());
    if (session_.stop_.due(run_.until_)) {
      throw RegionFailed{std::make_shared<const Failure>(run_.why_stopped()), where(), true};
    }
    frame.exchange(session_);
    Run inner(session_, region, run_.until_);
    const auto leave = c10::make_scope_exit([&] {
      inner.abandon();
      frame.exchange(session_);
    });
    for (size_t i = 0; i < taken.size(); ++i) {
      const auto value = region.inputs[i].value;
      inner.keep(value, std::move(taken[i]));
    }
    for (size_t i = 0; i < region.steps.size(); ++i) {
      inner.step(region.steps[i], i);
      if (inner.poisoned_) {
        throw RegionFailed{inner.first_failure_, where(), inner.stopped_ != nullptr};
      }
    }
    Tensors results;
    results.reserve(region.outputs.size());
    for (const auto value : region.outputs) {
      results.push_back(session_.slots_[value]->tensor);
    }
    return results;
  }

  // A result shares memory with no operand and no other result: who writes to one writes to it alone.
  static void make_fresh(Tensors& results, const std::vector<c10::IValue>& given) {
    std::vector<const void*> taken;
    const auto take = [&](const at::Tensor& tensor) {
      if (const auto* storage = storage_of_result(tensor)) {
        taken.push_back(storage);
      }
    };
    for (const auto& argument : given) {
      if (argument.isTensor()) {
        take(argument.toTensor());
      } else if (argument.isTensorList()) {
        for (const at::Tensor& tensor : argument.toTensorVector()) {
          take(tensor);
        }
      }
    }
    for (auto& result : results) {
      if (std::find(taken.begin(), taken.end(), storage_of_result(result)) != taken.end()) {
        result = result.clone();
      }
      take(result);
    }
  }

  Run& run_;
  Session& session_;
  const Step& step_;
};

void Session::Run::call_regions(const Step& step) {
  Regions(*this, step).call();
}

// The step failed within a region: the error says where, and the line is the one that made the region's step.
FailurePtr Session::Run::failed_within(const RegionFailed& inner, const Step& step, size_t index) {
  auto failure = *inner.failure;
  auto where = "in " + inner.where;
  if (failure.step >= 0) {
    where += ", step " + std::to_string(failure.step) + " (" + failure.op + ")";
  }
  failure.message = where + ": " + failure.message;
  const auto made = named(std::move(failure), step, index);
  if (inner.stopped) {
    stopped_ = made;
  }
  return made;
}

}  // namespace genie_local
