// Which values of a session may leave its device, and how they come back.
#include <c10/core/impl/COW.h>
#include <c10/util/ScopeExit.h>

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "session.h"

namespace genie_local {
namespace {

constexpr size_t least_leaving = 4096;  // bytes; below, nothing is gained

}  // namespace

Session::~Session() {
  if (memory_.budget()) {
    memory_.budget()->leave(this);
  }
}

void Session::name(std::string label, std::string tenant) {
  if (memory_.budget()) {
    memory_.budget()->name(*this, std::move(label), std::move(tenant));
  }
}

void Session::list_leaving(std::vector<Leaving>& found) {
  struct Seen {
    size_t tensors = 0;
    size_t storage_uses = 0;
    bool stays = false;
    Use use;
  };
  ska::flat_hash_map<c10::StorageImpl*, Seen> storages;
  ska::flat_hash_map<c10::TensorImpl*, size_t> tensors;
  for (const auto& [handle, holder] : values_) {
    if (holder.storage != nullptr && ++tensors[holder.tensor.unsafeGetTensorImpl()] == 1) {
      ++storages[holder.storage].tensors;
    }
  }
  // Whoever refers to a tensor or a storage besides these values may be using it.
  for (const auto& [handle, holder] : values_) {
    if (holder.storage == nullptr) {
      continue;
    }
    const auto& tensor = holder.tensor;
    auto& its = storages[holder.storage];
    its.storage_uses = tensor.storage().use_count();
    its.stays |= tensor.layout() != c10::kStrided || tensor.device() != device_ ||
        tensor.use_count() != tensors[tensor.unsafeGetTensorImpl()] || (working_ && holder.use.run == use_.run);
    its.use = its.use.when == 0 ? holder.use : later(holder.use, its.use);
  }
  for (const auto& [storage, its] : storages) {
    if (!its.stays && its.storage_uses == its.tensors && storage->nbytes() >= least_leaving &&
        !c10::impl::cow::is_cow_data_ptr(storage->data_ptr())) {
      const bool away = is_away(*storage);
      if (away || storage->data_ptr().get() != nullptr) {
        found.push_back({this, storage, its.use, away});
      }
    }
  }
}

void Session::bring_back(Holder& holder) {
  if (holder.storage != nullptr) {
    bring_back(*holder.storage);
  }
}

void Session::bring_back(c10::StorageImpl& storage) {
  if (!is_away(storage)) {
    return;
  }
  memory_.admit_back(storage);
  const CleanState clean(device_, warnings_);
  translated([&] { genie_local::bring_back(storage, memory_.budget().get()); });
  memory_.came_back(storage);
}

void Session::prefetch() {
  std::vector<int64_t> wanted;
  {
    const std::lock_guard<std::mutex> lock(lock_);
    if (!open_ || use_.run == 0 || memory_.away() == 0) {
      return;
    }
    for (const auto& [handle, holder] : values_) {
      if (holder.use.run == use_.run && holder.storage != nullptr && is_away(*holder.storage)) {
        wanted.push_back(handle);
      }
    }
  }
  for (const auto handle : wanted) {
    const std::lock_guard<std::mutex> lock(lock_);  // each by itself: what the client asks for meanwhile goes on
    const auto found = values_.find(handle);
    if (!open_ || found == values_.end()) {
      continue;
    }
    working_ = true;  // so that none of them leaves to make room for another
    const auto rest = c10::make_scope_exit([this] { working_ = false; });
    bring_back(found->second);
  }
}

}  // namespace genie_local
