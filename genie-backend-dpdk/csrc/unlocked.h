// Work without the interpreter's lock.
#pragma once

#include <Python.h>
#include <cxxabi.h>

#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

namespace genie {

// Calls `work`, which may throw. The interpreter unwinds threads that come back to it while it ends itself, and that
// can't begin in a destructor, nor while an exception is on its way: so nothing is on its way when they come back.
template <class Work>
auto unlocked(Work work) {
    using Result = std::invoke_result_t<Work>;
    std::exception_ptr problem;
    const auto attempt = [&](auto each) {
        PyThreadState* state = PyEval_SaveThread();
        try {
            each();
        } catch (abi::__forced_unwind&) {  // it came back, and is ended
            throw;
        } catch (...) {
            problem = std::current_exception();
        }
        PyEval_RestoreThread(state);
        if (problem) std::rethrow_exception(std::move(problem));
    };
    if constexpr (std::is_void_v<Result>) {
        attempt([&] { work(); });
    } else {
        std::optional<Result> result;
        attempt([&] { result.emplace(work()); });
        return std::move(*result);
    }
}

}  // namespace genie
