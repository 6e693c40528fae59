// One execution of one plan.
#pragma once

#include "clean.h"
#include "session.h"

namespace genie_local {

// Thrown within a step that runs regions: why, in which of them, and whether that is no fault of theirs.
struct RegionFailed {
  FailurePtr failure;
  std::string where;
  bool stopped;
};

class Session::Run {
 public:
  Run(Session& session, Plan& plan) : Run(session, plan, session.stop_.until()) {}

  // `words` as in genie.bindings. Refused when a handle is unknown or taken; nothing has happened then.
  void bind(const std::vector<uint64_t>& words);
  // All steps, in order, timed if that is due.
  void alone();
  // Gives the outputs their handles and forgets the donated inputs.
  void finish();
  // Forgets the values made, and the donated inputs.
  void abandon();

  // In turns with other sessions' (lockstep.cpp), on one thread:
  const void* session() const {
    return &session_;
  }
  c10::Device device() const {
    return session_.device_;
  }
  Flow* flow() const {
    return session_.flow_.get();
  }
  void end_turn() {
    session_.end_turn();
  }
  std::set<std::string>& warnings() {
    return session_.warnings_;
  }
  const Plan& plan() const {
    return plan_;
  }
  // The steps before this one that were not done yet.
  void advance(size_t end, CleanState& clean);
  // Where the weights of its products are, in the order of addresses.
  std::vector<const void*> weights() const;
  // The operands of a product, the next step; none if the step has to be done by `advance`.
  std::vector<c10::IValue> operands(const Product& product);
  // Memory for its result, which then counts as the step's; undefined when there was none, and the step failed.
  at::Tensor make(const Product& product, const std::vector<c10::IValue>& operands);
  // The step is done: its result is in that memory, or it failed.
  void made(const Product& product);
  void failed(const Product& product, Failure failure);
  // For the counters: it ran with so many, itself included, and did so many products with others.
  void batched(size_t members, size_t products);

 private:
  struct Frame;
  class Regions;

  Run(Session& session, Plan& plan, int64_t until) : session_(session), plan_(plan), until_(until) {}

  void steps(size_t end);
  void timed();  // in timing.cpp
  void step(Step& step, size_t index);
  void perform(Step& step, size_t index);
  template <class Work>
  FailurePtr attempt(const Step& step, size_t index, Work&& work);
  FailurePtr describe(Failure failure, const Step& step, size_t index);
  FailurePtr named(Failure failure, const Step& step, size_t index) const;
  void release(const Step& step);
  void push(Argument& argument, const Step& step);
  void push_list(const Argument& argument);
  void call(const Step& step);
  void call_cleared(const Step& step);  // an operator that gives out memory as it finds it
  void call_regions(const Step& step);  // regions.cpp
  void call_compiled(const Step& step);  // compiled.cpp
  FailurePtr failed_within(const RegionFailed& inner, const Step& step, size_t index);
  at::Generator& generator(int64_t number, const Step& step);
  void keep_results(const Step& step);
  void keep(int32_t value, at::Tensor tensor);
  FailurePtr stopped(size_t index);
  Failure why_stopped();
  FailurePtr failed_operand(const Step& step) const;
  void poison(const Step& step, const FailurePtr& failure);
  void poison_storage(Holder& holder, const FailurePtr& failure);

  Session& session_;
  Plan& plan_;
  size_t next_ = 0;  // step
  int64_t first_output_ = 0;
  std::vector<int64_t> donated_;
  bool poisoned_ = false;  // some value may carry a failure
  FailurePtr first_failure_;  // of the steps done
  const int64_t until_;  // as Stop has it
  FailurePtr stopped_;  // why no further step is done
};

}  // namespace genie_local
