#include "refused.h"

#include <c10/util/Exception.h>
#include <pybind11/pybind11.h>

#include <new>

namespace genie_local {
namespace {

// The CPU allocator reports exhaustion as a plain error.
bool is_exhaustion(const std::string& message) {
  return message.find("DefaultCPUAllocator: not enough memory") != std::string::npos ||
      message.find("DefaultCPUAllocator: can't allocate memory") != std::string::npos;
}

Failure from_python(pybind11::error_already_set& error) {
  pybind11::gil_scoped_acquire gil;
  Failure failure;
  failure.kind = pybind11::str(error.type().attr("__name__"));
  failure.message = pybind11::str(error.value());
  return failure;
}

}  // namespace

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

Failure current_failure() {
  Failure failure;
  try {
    throw;
  } catch (const c10::OutOfMemoryError& error) {
    failure = {"OutOfMemoryError", error.what_without_backtrace()};
  } catch (const c10::IndexError& error) {
    failure = {"IndexError", error.what_without_backtrace()};
  } catch (const c10::ValueError& error) {
    failure = {"ValueError", error.what_without_backtrace()};
  } catch (const c10::TypeError& error) {
    failure = {"TypeError", error.what_without_backtrace()};
  } catch (const c10::NotImplementedError& error) {
    failure = {"NotImplementedError", error.what_without_backtrace()};
  } catch (const c10::LinAlgError& error) {
    failure = {"LinAlgError", error.what_without_backtrace()};
  } catch (const c10::Error& error) {
    failure = {"RuntimeError", error.what_without_backtrace()};
    if (is_exhaustion(failure.message)) {
      failure.kind = "OutOfMemoryError";
    }
  } catch (pybind11::error_already_set& error) {
    failure = from_python(error);
  } catch (const std::bad_alloc&) {
    failure = {"OutOfMemoryError", "out of memory"};
  } catch (const std::exception& error) {
    failure = {"RuntimeError", first_line(error.what())};
  } catch (...) {
    failure = {"RuntimeError", "an exception of unknown type"};
  }
  return failure;
}

}  // namespace genie_local
