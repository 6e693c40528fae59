#include "snapshot.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <set>

#include "clean.h"
#include "names.h"
#include "session.h"

namespace genie_local {
namespace {

using Lock = std::lock_guard<std::mutex>;

[[noreturn]] void refuse(int64_t handle, const std::string& why) {
  throw Refused(Refusal::node, "handle " + std::to_string(handle) + " " + why);
}

void check_plain(int64_t handle, const at::Tensor& tensor) {
  const char* const advice = ": such a value cannot be part of a snapshot; make it a dense tensor, or free it";
  if (tensor.layout() != c10::kStrided || tensor.is_quantized() || name_of(tensor.scalar_type()) == nullptr) {
    refuse(handle, std::string("is a tensor of ") + toString(tensor.scalar_type()) + " and layout " +
               (tensor.layout() == c10::kStrided ? "strided" : "that is not strided") + advice);
  }
  if (tensor.device().is_meta() || tensor._is_zerotensor()) {
    refuse(handle, std::string("has no memory") + advice);
  }
  const auto extent = at::detail::computeStorageNbytes(
      tensor.sizes(), tensor.strides(), tensor.itemsize(), static_cast<size_t>(tensor.storage_offset()));
  if (tensor.numel() > 0 && extent > tensor.storage().nbytes()) {
    refuse(handle, std::string("had its storage taken from it") + advice);
  }
}

// Whether all of a value's elements lie within so many bytes.
bool lies_within(const ValueState& value, int64_t bytes) {
  if (value.spec.stride.size() != value.spec.shape.size() || value.offset < 0) {
    return false;
  }
  int64_t last = value.offset;
  bool empty = false;
  bool fits = true;
  for (size_t dim = 0; dim < value.spec.shape.size(); ++dim) {
    const auto size = value.spec.shape[dim];
    const auto stride = value.spec.stride[dim];
    int64_t reach = 0;
    if (size < 0 || stride < 0) {
      return false;
    }
    empty = empty || size == 0;
    fits = fits && size > 0 && !__builtin_mul_overflow(stride, size - 1, &reach) &&
        !__builtin_add_overflow(last, reach, &last);
  }
  int64_t end = 0;
  return empty ||
      (fits && last < INT64_MAX &&
       !__builtin_mul_overflow(last + 1, static_cast<int64_t>(c10::elementSize(value.spec.dtype)), &end) &&
       end <= bytes);
}

// A tensor lays claim to no more elements than 64 bits count, be they all one.
bool is_countable(const Spec& spec) {
  int64_t count = static_cast<int64_t>(c10::elementSize(spec.dtype));
  bool fits = true;
  for (const auto size : spec.shape) {
    if (size == 0) {
      return true;
    }
    fits = fits && !__builtin_mul_overflow(count, size, &count);
  }
  return fits;
}

}  // namespace

Snapshot Session::snapshot() {
  const Lock lock(lock_);
  check_open();
  Snapshot made;
  std::vector<int64_t> handles;
  handles.reserve(values_.size());
  for (const auto& [handle, holder] : values_) {
    handles.push_back(handle);
  }
  std::sort(handles.begin(), handles.end());
  std::set<int64_t> known;
  for (const auto handle : handles) {
    const auto& holder = values_.find(handle)->second;
    const auto& tensor = holder.tensor;
    if (holder.failure) {
      made.failures.emplace_back(handle, holder.failure);
      continue;
    }
    ValueState value;
    value.handle = handle;
    if (tensor.defined()) {
      check_plain(handle, tensor);
      const auto identity = memory_.identity(holder.storage);
      if (known.insert(identity.id).second) {
        made.memories.push_back(
            {identity.id,
             static_cast<int64_t>(holder.storage->nbytes()),
             identity.version,
             tensor.device().type() != device_.type()});
      }
      value.memory = identity.id;
      value.spec = {tensor.sizes().vec(), tensor.scalar_type(), tensor.strides().vec()};
      value.offset = tensor.storage_offset();
      value.conjugate = tensor.is_conj();
      value.negative = tensor.is_neg();
      value.wrapped = tensor.unsafeGetTensorImpl()->is_wrapped_number();
    }
    made.values.push_back(std::move(value));
  }
  made.generators = generators_.states();
  made.seeds = generators_.seeds();
  return made;
}

Bytes Session::read_memory(int64_t id, int64_t version, int64_t offset, int64_t size) {
  const Lock lock(lock_);
  check_open();
  auto* storage = memory_.find(id);
  if (storage == nullptr) {
    throw Refused(Refusal::node, "there is no memory " + std::to_string(id) + " any more");
  }
  if (version != 0 && memory_.identity(storage).version != version) {
    throw Refused(Refusal::node, "memory " + std::to_string(id) + " was written to since");
  }
  const auto has = static_cast<int64_t>(storage->nbytes());
  if (size < 0 && offset <= has) {
    size = has - offset;
  }
  if (offset < 0 || size < 0 || size > has - offset) {
    throw Refused(
        Refusal::node,
        std::to_string(size) + " bytes from " + std::to_string(offset) + " on of memory " + std::to_string(id) +
            ", which has " + std::to_string(has));
  }
  Bytes bytes;
  bytes.size = static_cast<size_t>(size);
  if (size == 0) {
    return bytes;
  }
  counters_.fetched += size;
  bring_back(*storage);
  if (storage->device_type() == c10::kCPU) {
    bytes.pinned = pin(genie_local::share(*storage));
    bytes.data = const_cast<char*>(static_cast<const char*>(storage->data())) + offset;
    return bytes;
  }
  const CleanState clean(device_, warnings_);
  bytes.tensor = translated([&] {
    constexpr int64_t one = 1;
    auto part = at::empty({0}, at::TensorOptions().dtype(at::kByte).device(storage->device()));
    part.unsafeGetTensorImpl()->set_storage_keep_dtype(
        c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage)));
    part.unsafeGetTensorImpl()->set_sizes_and_strides(at::IntArrayRef(size), at::IntArrayRef(one), offset);
    return host_tensor({size}, at::kByte, keep_).copy_(part);
  });
  bytes.data = bytes.tensor.mutable_data_ptr();
  return bytes;
}

MemoryState Session::memory_of(int64_t handle) {
  const Lock lock(lock_);
  const auto& tensor = look(handle);
  if (!tensor.defined() || !tensor.has_storage()) {
    return {};
  }
  auto* storage = values_.find(handle)->second.storage;
  const auto identity = memory_.identity(storage);
  return {
      identity.id,
      static_cast<int64_t>(storage->nbytes()),
      identity.version,
      tensor.device().type() != device_.type()};
}

void Session::restore(const Snapshot& snapshot, const std::map<int64_t, int64_t>& staged) {
  const Lock lock(lock_);
  check_open();
  working_ = true;  // so that none of what is given leaves while the rest is looked at
  const auto rest = c10::make_scope_exit([this] { working_ = false; });
  if (values_.size() != staged.size()) {
    throw Refused(
        Refusal::node,
        "a session with values of its own cannot become another: it has " +
            std::to_string(values_.size() - std::min(values_.size(), staged.size())) + " more than are given to it");
  }
  std::set<int64_t> given;
  for (const auto& [memory, handle] : staged) {
    if (values_.find(handle) == values_.end() || !given.insert(handle).second) {
      refuse(handle, "is unknown, or given for two memories");
    }
  }
  std::map<int64_t, MemoryState> memories;
  std::map<int64_t, c10::Storage> storages;
  std::set<c10::StorageImpl*> taken;
  const CleanState clean(device_, warnings_);
  for (const auto& memory : snapshot.memories) {
    const auto name = "memory " + std::to_string(memory.id);
    if (memory.id <= 0 || memory.version <= 0 || memory.bytes < 0 || !memories.emplace(memory.id, memory).second) {
      throw Refused(Refusal::node, name + " is there twice, or is none");
    }
    const auto found = staged.find(memory.id);
    const auto place = memory.host ? c10::Device(c10::kCPU) : device_;
    if (found == staged.end()) {
      if (memory.bytes > 0) {
        throw Refused(Refusal::node, "the bytes of " + name + " are missing");
      }
      storages[memory.id] =
          translated([&] { return at::empty({0}, at::TensorOptions().dtype(at::kByte).device(place)).storage(); });
      continue;
    }
    const auto& tensor = look(found->second);
    if (!tensor.defined() || tensor.layout() != c10::kStrided || !tensor.is_contiguous() || tensor.is_conj() ||
        tensor.is_neg() || tensor.storage_offset() != 0 || static_cast<int64_t>(tensor.nbytes()) != memory.bytes ||
        static_cast<int64_t>(tensor.storage().nbytes()) != memory.bytes ||
        !taken.insert(tensor.storage().unsafeGetStorageImpl()).second) {
      refuse(found->second, "is not the " + std::to_string(memory.bytes) + " bytes of " + name);
    }
    storages[memory.id] = tensor.device() == place ? tensor.storage() : translated([&] {
      return tensor.to(place).storage();
    });
  }
  std::set<int64_t> handles;
  for (const auto& [handle, failure] : snapshot.failures) {
    if (handle <= 0 || !handles.insert(handle).second) {
      refuse(handle, "is taken, or is none");
    }
  }
  std::vector<std::pair<int64_t, at::Tensor>> made;
  made.reserve(snapshot.values.size());
  for (const auto& value : snapshot.values) {
    if (value.handle <= 0 || !handles.insert(value.handle).second) {
      refuse(value.handle, "is taken, or is none");
    }
    if (value.memory == 0) {
      made.emplace_back(value.handle, at::Tensor());
      continue;
    }
    const auto memory = memories.find(value.memory);
    if (memory == memories.end() || !lies_within(value, memory->second.bytes) || !is_countable(value.spec) ||
        (value.conjugate && !c10::isComplexType(value.spec.dtype))) {
      refuse(value.handle, "does not lie within memory " + std::to_string(value.memory));
    }
    const auto& storage = storages.at(value.memory);
    made.emplace_back(value.handle, translated([&] {
      auto tensor = at::empty({0}, at::TensorOptions().dtype(value.spec.dtype).device(storage.device()));
      auto* impl = tensor.unsafeGetTensorImpl();
      impl->set_storage_keep_dtype(storage);
      impl->set_sizes_and_strides(value.spec.shape, value.spec.stride, value.offset);
      if (value.wrapped && value.spec.shape.empty()) {
        impl->set_wrapped_number(true);
      }
      tensor._set_neg(value.negative);
      if (value.conjugate) {
        tensor._set_conj(true);
      }
      return tensor;
    }));
  }
  generators_.restore(snapshot.generators, snapshot.seeds);
  // Nothing fails from here on.
  for (const auto& [memory, handle] : staged) {
    const auto found = values_.find(handle);
    memory_.release(found->second);
    values_.erase(found);
  }
  for (auto& [handle, tensor] : made) {
    const auto bytes = tensor.defined() ? shared_bytes(*tensor.storage().unsafeGetStorageImpl()) : nullptr;
    insert(handle, std::move(tensor), bytes && bytes->budget ? Kind::weight : Kind::state);
  }
  for (const auto& [handle, failure] : snapshot.failures) {
    values_[handle].failure = failure;
  }
  for (const auto& value : snapshot.values) {
    if (value.memory != 0) {
      const auto& memory = memories.at(value.memory);
      memory_.identify(storages.at(value.memory).unsafeGetStorageImpl(), {memory.id, memory.version});
    }
  }
}

}  // namespace genie_local
