#include "lockstep.h"

#include <chrono>

#include "clean.h"

namespace genie_local {
namespace {

class Lockstep {
 public:
  Lockstep(Products& products, const std::vector<Session::Run*>& runs, std::vector<std::exception_ptr>& errors)
      : products_(products),
        runs_(runs),
        errors_(errors),
        shared_(runs.size(), 0),
        clean_(runs.front()->device(), runs.front()->warnings()) {}

  void run() {
    size_t most = 0;
    for (const auto* run : runs_) {
      most = std::max(most, run->plan().products.size());
    }
    for (size_t number = 0; number < most; ++number) {
      together(number);
    }
    for (size_t i = 0; i < runs_.size(); ++i) {
      guarded(i, [&] { runs_[i]->advance(runs_[i]->plan().steps.size(), clean_); });
    }
    for (size_t i = 0; i < runs_.size(); ++i) {
      runs_[i]->batched(runs_.size(), shared_[i]);
    }
  }

 private:
  template <class Work>
  bool guarded(size_t i, Work&& work) {
    if (errors_[i]) {
      return false;
    }
    try {
      work();
      return true;
    } catch (...) {
      errors_[i] = std::current_exception();
      return false;
    }
  }

  // All up to their product of this number, and that: those who can, together; the others by themselves, with what
  // comes after it.
  void together(size_t number) {
    members_.clear();
    parts_.clear();
    for (size_t i = 0; i < runs_.size(); ++i) {
      guarded(i, [&] { join(i, number); });
    }
    if (members_.size() < 2) {
      return;
    }
    const auto& plan = runs_[members_.front()]->plan();
    const auto& product = plan.products[number];
    const auto& step = plan.steps[product.step];
    const auto choice = products_.choose(step, product, parts_);
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    if (choice.way == Way::each) {
      parts_.clear();
      for (const auto i : members_) {
        guarded(i, [&] { runs_[i]->advance(own(i, number).step + 1, clean_); });
      }
    } else {
      fill(choice, step, number);
    }
    products_.took(choice, std::chrono::duration<double>(Clock::now() - start).count());
    for (const auto i : members_) {
      ++shared_[i];
    }
  }

  void join(size_t i, size_t number) {
    auto& run = *runs_[i];
    if (number >= run.plan().products.size()) {
      return;
    }
    const auto& product = run.plan().products[number];
    run.advance(product.step, clean_);
    Part part{run.operands(product), {}};
    if (part.operands.empty() || !Products::fits(product, part)) {
      return;
    }
    if (!members_.empty()) {
      const auto& plan = runs_[members_.front()]->plan();
      const auto& its = plan.products[number];
      // One operator has its operands in one place, so what holds for the first holds for this one.
      if (plan.steps[its.step].op->name != run.plan().steps[product.step].op->name ||
          !Products::alike(product, parts_.front(), part)) {
        return;
      }
    }
    members_.push_back(i);
    parts_.push_back(std::move(part));
  }

  const Product& own(size_t i, size_t number) const {
    return runs_[i]->plan().products[number];
  }

  void fill(const Products::Choice& choice, const Step& step, size_t number) {
    size_t kept = 0;
    for (size_t k = 0; k < members_.size(); ++k) {
      const auto i = members_[k];
      guarded(i, [&] { parts_[k].result = runs_[i]->make(own(i, number), parts_[k].operands); });
      if (parts_[k].result.defined()) {
        members_[kept] = i;
        if (kept != k) {
          parts_[kept] = std::move(parts_[k]);
        }
        ++kept;
      }
    }
    members_.resize(kept);
    parts_.resize(kept);
    if (kept == 0) {
      return;
    }
    try {
      products_.fill(choice, step, own(members_.front(), number), parts_);
    } catch (...) {
      const auto failure = current_failure();
      parts_.clear();
      for (const auto i : members_) {
        guarded(i, [&] { runs_[i]->failed(own(i, number), failure); });
      }
      return;
    }
    parts_.clear();  // operands are released by their sessions
    for (const auto i : members_) {
      guarded(i, [&] { runs_[i]->made(own(i, number)); });
    }
  }

  Products& products_;
  const std::vector<Session::Run*>& runs_;
  std::vector<std::exception_ptr>& errors_;
  std::vector<size_t> shared_;  // products done with others
  CleanState clean_;
  // Of the product that is at hand:
  std::vector<size_t> members_;
  std::vector<Part> parts_;
};

}  // namespace

void run_in_lockstep(
    Products& products, const std::vector<Session::Run*>& runs, std::vector<std::exception_ptr>& errors) {
  Lockstep(products, runs, errors).run();
}

}  // namespace genie_local
