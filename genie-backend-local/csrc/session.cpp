#include "session.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/ScopeExit.h>

#include <cstring>

#include "batch.h"
#include "clean.h"
#include "names.h"
#include "products.h"
#include "run.h"

namespace genie_local {
namespace {

// Below, copying costs less than sharing.
constexpr size_t few_bytes = 2048;

using Lock = std::lock_guard<std::mutex>;

int64_t bytes_of(const Spec& spec) {
  int64_t bytes = static_cast<int64_t>(c10::elementSize(spec.dtype));
  for (const auto dim : spec.shape) {
    if (dim < 0 || __builtin_mul_overflow(bytes, dim, &bytes)) {
      throw Refused(Refusal::node, "the shape of a value does not fit 64 bits");
    }
  }
  return bytes;
}

// Elements from the first to the last of a value with strides; 0 if they overlap in a way that a copy can't have, or
// there are none.
int64_t extent_of(const Spec& spec) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  if (spec.stride.size() != spec.shape.size()) {
    throw Refused(Refusal::node, "a value has another number of strides than of dimensions");
  }
  for (size_t dim = 0; dim < spec.shape.size(); ++dim) {
    if (spec.stride[dim] < 0) {
      throw Refused(Refusal::node, "a value has a negative stride");
    }
    if (spec.shape[dim] == 0) {
      return 0;
    }
    if (spec.shape[dim] > 1 && spec.stride[dim] > 0) {
      dims.emplace_back(spec.stride[dim], spec.shape[dim]);
    }
  }
  std::sort(dims.begin(), dims.end());
  int64_t extent = 1;
  for (const auto& [stride, size] : dims) {
    int64_t reach = 0;
    if (stride < extent) {
      return 0;
    }
    if (__builtin_mul_overflow(stride, size - 1, &reach) || __builtin_add_overflow(extent, reach, &extent) ||
        extent > (int64_t{1} << 56)) {
      throw Refused(Refusal::node, "the strides of a value do not fit 64 bits");
    }
  }
  return extent;
}

Spec spec_of(const at::Tensor& tensor) {
  return {
      tensor.sizes().vec(),
      tensor.scalar_type(),
      tensor.layout() == c10::kStrided ? tensor.strides().vec() : std::vector<int64_t>()};
}

[[noreturn]] void unfetchable(const std::string& what) {
  throw Poisoned(std::make_shared<const Failure>(
      Failure{"NotImplementedError", what + " cannot be brought home: make it a dense tensor first"}));
}

void check_fetchable(const at::Tensor& tensor) {
  if (!tensor.defined()) {
    throw Poisoned(std::make_shared<const Failure>(Failure{"RuntimeError", "the value is an undefined tensor"}));
  }
  if (tensor.layout() != c10::kStrided || tensor.is_quantized() || name_of(tensor.scalar_type()) == nullptr) {
    unfetchable(std::string("a tensor of ") + toString(tensor.scalar_type()) + " and layout " +
                (tensor.layout() == c10::kStrided ? "strided" : "that is not strided"));
  }
  if (tensor.device().is_meta()) {
    unfetchable("a tensor on the meta device");
  }
  const auto& storage = tensor.storage();
  const auto extent = at::detail::computeStorageNbytes(
      tensor.sizes(), tensor.strides(), tensor.itemsize(), static_cast<size_t>(tensor.storage_offset()));
  if (extent > storage.nbytes() && !tensor._is_zerotensor()) {
    unfetchable("a tensor whose storage was taken from it");
  }
}

// Whether the value's elements lie in host memory as they are wanted. A tensor of zeros may have no memory at all.
bool is_plain(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg() && !tensor._is_zerotensor();
}

}  // namespace

void Session::check_open() const {
  if (!open_) {
    throw Refused(Refusal::closed, "the session is closed");
  }
}

void Session::check_new(int64_t handle) const {
  if (handle <= 0) {
    throw Refused(Refusal::node, "handle " + std::to_string(handle) + " is no positive 63-bit number");
  }
  if (values_.find(handle) != values_.end()) {
    throw Refused(Refusal::node, "handle " + std::to_string(handle) + " is taken");
  }
}

void Session::insert(int64_t handle, at::Tensor tensor, Kind kind) {
  auto& holder = values_[handle];
  holder.tensor = std::move(tensor);
  holder.use = use_;
  holder.use.when = now_ms();
  memory_.hold(holder, kind);
  memory_.flush();
}

Holder& Session::find(int64_t handle) {
  check_open();
  const auto found = values_.find(handle);
  if (found == values_.end()) {
    throw Refused(Refusal::node, "handle " + std::to_string(handle) + " is unknown");
  }
  if (found->second.failure) {
    throw Poisoned(found->second.failure);
  }
  return found->second;
}

const at::Tensor& Session::look(int64_t handle) {
  auto& holder = find(handle);
  bring_back(holder);
  holder.use.when = now_ms();
  return holder.tensor;
}

void Session::load(int64_t id, std::shared_ptr<Plan> plan) {
  const Lock lock(lock_);
  check_open();
  plan->id = id;
  if (batcher_) {
    find_products(*plan);
  }
  plans_[id] = std::move(plan);
}

std::shared_ptr<Plan>& Session::known_plan(int64_t id) {
  check_open();
  const auto found = plans_.find(id);
  if (found == plans_.end()) {
    throw Refused(Refusal::node, "plan " + std::to_string(id) + " is unknown");
  }
  return found->second;
}

void Session::execute(int64_t id, const uint8_t* bindings, size_t size) {
  const Lock lock(lock_);
  auto& plan = *known_plan(id);
  plan.receive(bindings, size);
  run(plan, plan.prediction->words());
}

void Session::run(Plan& plan, const std::vector<uint64_t>& words) {
  if (plan.fixed && !std::equal(plan.parameters.begin(), plan.parameters.end(), words.end() - plan.parameters.size())) {
    throw Refused(
        Refusal::node, "plan " + std::to_string(plan.id) + " is compiled with its numbers, and executed with others");
  }
  ++counters_.executions;
  Run run(*this, plan);
  working_ = true;
  const auto rest = c10::make_scope_exit([this] {
    memory_.flush();
    working_ = false;
  });
  ++use_.run;
  use_.when = now_ms();
  use_.inflation = memory_.budget() ? memory_.budget()->inflation.load(std::memory_order_relaxed) : 0;
  run.bind(words);
  try {
    if (batcher_ && !plan.products.empty() && !timer_.always()) {
      batcher_->run(run);
    } else {
      const Turn turn(flow_.get());
      run.alone();
      end_turn();
    }
    run.finish();
  } catch (...) {
    run.abandon();
    throw;
  }
}

// Kernels are queued on some devices: a turn that others wait for lasts until they are done.
void Session::end_turn() {
  if (flow_ && !device_.is_cpu() && flow_->turnstile().contended()) {
    c10::impl::VirtualGuardImpl(device_.type()).synchronizeDevice(device_.index());
  }
}

at::Tensor Session::allocate(const Spec& spec) {
  const Lock lock(lock_);
  check_open();
  memory_.admit(bytes_of(spec), "an upload");
  const CleanState clean(device_, warnings_);
  return translated([&] { return host_tensor(spec.shape, spec.dtype, keep_); });
}

void Session::commit(int64_t handle, const at::Tensor& host) {
  const Lock lock(lock_);
  check_open();
  check_new(handle);
  const auto bytes = static_cast<int64_t>(host.nbytes());
  memory_.admit(bytes, "an upload");
  const CleanState clean(device_, warnings_);
  const Turn turn(host.device() == device_ ? nullptr : flow_.get());
  insert(handle, host.device() == device_ ? host : translated([&] { return host.to(device_); }), Kind::input);
  counters_.uploaded += bytes;
}

void Session::upload(int64_t handle, const Spec& spec, const void* data, size_t size) {
  if (bytes_of(spec) != static_cast<int64_t>(size)) {
    throw Refused(
        Refusal::node,
        std::to_string(size) + " bytes for a value of " + std::to_string(bytes_of(spec)) + " bytes");
  }
  const auto extent = spec.stride.empty() ? 0 : extent_of(spec);
  const auto host = allocate(spec);
  if (size > 0) {  // nothing may be at no address
    std::memcpy(host.mutable_data_ptr(), data, size);
  }
  if (extent > 0) {
    commit(handle, lay_out(host, spec, extent));
  } else {
    commit(handle, host);
  }
}

at::Tensor Session::lay_out(const at::Tensor& host, const Spec& spec, int64_t extent) {
  const Lock lock(lock_);
  check_open();
  memory_.admit(extent * static_cast<int64_t>(host.itemsize()), "an upload");
  const CleanState clean(device_, warnings_);
  return translated([&] {
    // Of a dimension that repeats its elements, one is kept.
    auto kept = host;
    auto sizes = spec.shape;
    for (size_t dim = 0; dim < sizes.size(); ++dim) {
      if (spec.stride[dim] == 0 && sizes[dim] > 1) {
        sizes[dim] = 1;
        kept = kept.narrow(static_cast<int64_t>(dim), 0, 1);
      }
    }
    const auto options = host.options().device(device_);
    // Between elements that do not lie side by side is memory that may have been another session's.
    auto laid = kept.numel() == extent ? at::empty_strided(sizes, spec.stride, options)
                                       : at::zeros({extent}, options).as_strided(sizes, spec.stride);
    laid.copy_(kept);
    laid.unsafeGetTensorImpl()->set_sizes_and_strides(spec.shape, spec.stride);
    return laid;
  });
}

void Session::poison(int64_t handle, Failure failure) {
  const Lock lock(lock_);
  check_open();
  check_new(handle);
  values_[handle].failure = std::make_shared<const Failure>(std::move(failure));
}

Spec Session::describe(int64_t handle) {
  const Lock lock(lock_);
  const auto& tensor = find(handle).tensor;  // wherever its bytes are
  check_fetchable(tensor);
  return spec_of(tensor);
}

Bytes Session::fetch(int64_t handle, Spec& spec) {
  const Lock lock(lock_);
  return read(handle, spec);
}

Bytes Session::read(int64_t handle, Spec& spec) {
  const auto& tensor = look(handle);
  check_fetchable(tensor);
  spec = spec_of(tensor);
  Bytes bytes;
  bytes.size = tensor.nbytes();
  counters_.fetched += static_cast<int64_t>(bytes.size);
  if (bytes.size == 0) {
    return bytes;
  }
  if (is_plain(tensor) && bytes.size <= few_bytes) {
    bytes.copied.assign(static_cast<const char*>(tensor.const_data_ptr()), bytes.size);
  } else if (is_plain(tensor)) {
    bytes.pinned = pin(genie_local::share(*tensor.storage().unsafeGetStorageImpl()));
    bytes.data = const_cast<void*>(tensor.const_data_ptr());
  } else {
    const CleanState clean(device_, warnings_);
    bytes.tensor = translated([&] {
      auto host = host_tensor(spec.shape, spec.dtype, keep_);
      return host.copy_(tensor);
    });
    bytes.data = bytes.tensor.mutable_data_ptr();
  }
  return bytes;
}

void Session::fetch_into(int64_t handle, Spec& spec, void* out, size_t size) {
  const Lock lock(lock_);
  const auto& tensor = look(handle);
  check_fetchable(tensor);
  spec = spec_of(tensor);
  if (tensor.nbytes() != size) {
    throw Refused(
        Refusal::node,
        "handle " + std::to_string(handle) + " has " + std::to_string(tensor.nbytes()) + " bytes, `out` has " +
            std::to_string(size));
  }
  counters_.fetched += static_cast<int64_t>(size);
  if (size == 0) {
    return;
  }
  if (is_plain(tensor)) {
    std::memcpy(out, tensor.const_data_ptr(), size);
    return;
  }
  const CleanState clean(device_, warnings_);
  translated([&] {
    if (reinterpret_cast<uintptr_t>(out) % c10::elementSize(spec.dtype) == 0) {
      at::from_blob(out, spec.shape, at::TensorOptions().dtype(spec.dtype)).copy_(tensor);
    } else {
      const auto host = at::empty(spec.shape, at::TensorOptions().dtype(spec.dtype)).copy_(tensor);
      std::memcpy(out, host.const_data_ptr(), size);
    }
  });
}

void Session::free(const std::vector<int64_t>& handles) {
  const Lock lock(lock_);
  check_open();
  for (const auto handle : handles) {
    if (const auto found = values_.find(handle); found != values_.end()) {
      memory_.release(found->second);
      values_.erase(found);
    }
  }
  memory_.flush();
}

SharedValue Session::share(int64_t handle) {
  return share(handle, /*content=*/false);
}

SharedValue Session::share_content(int64_t handle) {
  return share(handle, /*content=*/true);
}

SharedValue Session::share(int64_t handle, bool content) {
  const Lock lock(lock_);
  const auto& tensor = look(handle);
  check_fetchable(tensor);
  if (tensor._is_zerotensor() || tensor.is_conj() || tensor.is_neg()) {
    throw Refused(Refusal::node, "handle " + std::to_string(handle) + " is lazily computed and cannot be shared");
  }
  auto& storage = *tensor.storage().unsafeGetStorageImpl();
  auto bytes = genie_local::share(storage);
  memory_.shared(storage);
  if (content) {
    memory_.share(storage, bytes);
    if (memory_.budget()) {
      memory_.budget()->keep(bytes);
    }
  }
  return {spec_of(tensor), tensor.storage_offset(), storage.nbytes(), std::move(bytes), tensor.device()};
}

void Session::adopt(int64_t handle, const SharedValue& value) {
  const Lock lock(lock_);
  check_open();
  check_new(handle);
  if (value.device != device_) {
    throw Refused(Refusal::node, "a value shared on " + value.device.str() + " cannot be adopted on " + device_.str());
  }
  const bool counted = value.bytes->budget != nullptr && value.bytes->budget == memory_.budget();
  memory_.admit_shared(static_cast<int64_t>(value.storage_size), value.bytes, counted);
  const CleanState clean(device_, warnings_);
  auto tensor = at::empty({0}, at::TensorOptions().dtype(value.spec.dtype).device(device_));
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(genie_local::adopt(value.bytes, value.storage_size));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(value.spec.shape, value.spec.stride, value.offset);
  insert(handle, std::move(tensor), Kind::weight);
}

void Session::seed(int64_t generator, uint64_t seed) {
  const Lock lock(lock_);
  check_open();
  generators_.seed(generator, seed);
}

std::string Session::generator_state(int64_t generator) {
  const Lock lock(lock_);
  check_open();
  return generators_.state(generator);
}

void Session::set_generator_state(int64_t generator, const void* data, size_t size) {
  const Lock lock(lock_);
  check_open();
  generators_.set_state(generator, data, size);
}

void Session::synchronize() {
  const Lock lock(lock_);
  check_open();
  if (!device_.is_cpu()) {
    translated([&] { c10::impl::VirtualGuardImpl(device_.type()).synchronizeDevice(device_.index()); });
  }
}

Counters Session::counters() {
  const Lock lock(lock_);
  auto counters = counters_;
  counters.values = static_cast<int64_t>(values_.size());
  counters.plans = static_cast<int64_t>(plans_.size());
  counters.memory = memory_.live();
  counters.away = memory_.away();
  for (size_t kind = 0; kind < kinds; ++kind) {
    counters.by_kind[kind] = memory_.live(static_cast<Kind>(kind));
  }
  counters.peak_memory = memory_.peak();
  counters.timed = timer_.timed();
  counters.kept = static_cast<int64_t>(kept_bytes());
  return counters;
}

std::vector<std::string> Session::take_warnings() {
  const Lock lock(lock_);
  std::vector<std::string> texts(warnings_.begin(), warnings_.end());
  warnings_.clear();
  return texts;
}

std::vector<TimingRow> Session::take_timings() {
  const Lock lock(lock_);
  check_open();
  return timer_.take();
}

void Session::set_timing(double share) {
  const Lock lock(lock_);
  check_open();
  if (!(share >= 0 && share <= 1)) {
    throw Refused(Refusal::node, "timing takes a share of the time from 0 to 1, not " + std::to_string(share));
  }
  timer_.set_share(share);
}

void Session::close() {
  const Lock lock(lock_);
  open_ = false;
  for (auto& [handle, value] : values_) {
    memory_.release(value);
  }
  values_.clear();
  plans_.clear();
  keeps_blocks_.stop();
  memory_.flush();
}

}  // namespace genie_local
