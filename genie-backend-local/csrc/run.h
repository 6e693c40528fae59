// One execution of one plan.
#pragma once

#include "session.h"

namespace genie_local {

class Session::Run {
 public:
  Run(Session& session, Plan& plan) : session_(session), plan_(plan) {}

  // `words` as in genie.bindings. Refused when a handle is unknown or taken; nothing has happened then.
  void bind(const std::vector<uint64_t>& words);
  void steps();
  // Gives the outputs their handles and forgets the donated inputs.
  void finish();
  // Forgets the values made, and the donated inputs.
  void abandon();

 private:
  void timed_steps();  // in timing.cpp
  void step(Step& step, size_t index);
  void perform(Step& step, size_t index);
  void release(const Step& step);
  void push(Argument& argument, const Step& step);
  void push_list(const Argument& argument);
  void call(const Step& step);
  at::Generator& generator(int64_t number, const Step& step);
  void keep_results(const Step& step);
  void keep(int32_t value, at::Tensor tensor);
  FailurePtr failed_operand(const Step& step) const;
  void poison(const Step& step, const FailurePtr& failure);
  void poison_storage(Holder& holder, const FailurePtr& failure);

  Session& session_;
  Plan& plan_;
  int64_t first_output_ = 0;
  std::vector<int64_t> donated_;
  bool poisoned_ = false;  // some value may carry a failure
};

}  // namespace genie_local
