// What PyTorch asks of a device: guards, hooks, generators.
#include "device.h"

#include "port.h"
#include "record.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstring>
#include <random>

namespace genie {

namespace {

int16_t device_count = 1;

constexpr int kMostDevices = 16;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::DeviceType::PrivateUse1;
  c10::DeviceType type() const override {
    return static_type;
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override {
    return c10::Device(static_type, current_device());
  }
  void setDevice(c10::Device device) const override {
    set_current_device(device.index());
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    set_current_device(device.index());
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return c10::Stream(c10::Stream::DEFAULT, stream.device());
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    // Autograd reads this once, at the process's first backward pass, and can't serve an index beyond it. What the
    // cluster really has is often learned later.
    return static_cast<c10::DeviceIndex>(std::max<int>(device_count, kMostDevices));
  }
  bool queryStream(const c10::Stream&) const override {
    return true;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    synchronizeDevice(stream.device_index());
  }
  void synchronizeDevice(c10::DeviceIndex index) const override {
    {
      Lock lock;
      flush_all(index);
    }
    port::synchronize(index);
  }
  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    // Work on a device is one ordered stream: an event is reached when everything before it is.
    *event = reinterpret_cast<void*>(static_cast<intptr_t>(stream.device_index()) + 1);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  void synchronizeEvent(void* event) const override {
    synchronizeDevice(static_cast<c10::DeviceIndex>(reinterpret_cast<intptr_t>(event) - 1));
  }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

std::atomic<uint32_t> next_generator{1};

// The client's name for a generator that lives on the node.
struct RemoteGenerator final : c10::GeneratorImpl {
  RemoteGenerator(c10::DeviceIndex index, uint32_t number)
      : c10::GeneratorImpl(
            c10::Device(c10::DeviceType::PrivateUse1, index), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        number(number) {}

  void set_current_seed(uint64_t seed) override {
    seed_ = seed;
    const auto index = static_cast<int16_t>(device().index());
    {
      Lock lock;
      flush_all(index);
    }
    port::seed(index, number, seed);
  }
  uint64_t current_seed() const override {
    return seed_;
  }
  uint64_t seed() override {
    const uint64_t fresh = c10::detail::getNonDeterministicRandom();
    set_current_seed(fresh);
    return fresh;
  }
  void set_offset(uint64_t) override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "genie: generators of remote_accelerator have no offset");
  }
  uint64_t get_offset() const override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "genie: generators of remote_accelerator have no offset");
  }
  void set_state(const c10::TensorImpl& state) override {
    const auto index = static_cast<int16_t>(device().index());
    {
      Lock lock;
      flush_all(index);
    }
    TORCH_CHECK(
        state.device_type() == c10::DeviceType::CPU && state.dtype() == c10::scalarTypeToTypeMeta(at::kByte) &&
            state.is_contiguous(),
        "RNG state must be a contiguous torch.ByteTensor on the CPU");
    port::set_generator_state(
        index, number, std::string(static_cast<const char*>(state.data()), static_cast<size_t>(state.numel())));
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    const auto index = static_cast<int16_t>(device().index());
    {
      Lock lock;
      flush_all(index);
    }
    const auto bytes = port::generator_state(index, number);
    auto state = at::empty({static_cast<int64_t>(bytes.size())}, at::TensorOptions().dtype(at::kByte));
    std::memcpy(state.mutable_data_ptr(), bytes.data(), bytes.size());
    return state.getIntrusivePtr();
  }
  RemoteGenerator* clone_impl() const override {
    auto* copy = new RemoteGenerator(device().index(), next_generator++);
    copy->seed_ = seed_;
    port::set_generator_state(
        static_cast<int16_t>(device().index()),
        copy->number,
        port::generator_state(static_cast<int16_t>(device().index()), number));
    return copy;
  }

  const uint32_t number;

 private:
  uint64_t seed_ = c10::default_rng_seed_val;
};

at::Generator& default_generator(c10::DeviceIndex index) {
  static std::deque<at::Generator> generators;
  static std::mutex guard;
  std::lock_guard<std::mutex> lock(guard);
  const auto wanted = static_cast<size_t>(index < 0 ? current_device() : index);
  while (generators.size() <= wanted) {
    generators.push_back(
        at::make_generator<RemoteGenerator>(static_cast<c10::DeviceIndex>(generators.size()), 0u));
  }
  return generators[wanted];
}

at::Generator new_generator(c10::DeviceIndex index) {
  auto generator = at::make_generator<RemoteGenerator>(index < 0 ? current_device() : index, next_generator++);
  generator.set_current_seed(c10::default_rng_seed_val);
  return generator;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex index) const override {
    return port::connected(index);
  }
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(device_count);
  }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    set_current_device(index);
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return current_device();
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    const auto before = current_device();
    set_current_device(index);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    return default_generator(index);
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return new_generator(index);
  }
  at::Device getDeviceFromPtr(void*) const override {
    return at::Device(at::kPrivateUse1, current_device());
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(
        size == storage.nbytes(),
        "genie: a storage on remote_accelerator can't be resized by itself; resize the tensor (Tensor.resize_)");
  }
};

} // namespace

uint32_t generator_number(const at::Generator& generator) {
  TORCH_CHECK(
      generator.device().type() == c10::DeviceType::PrivateUse1,
      "Expected a 'remote_accelerator' device type for generator but found '",
      generator.device().type(),
      "'");
  return static_cast<const RemoteGenerator*>(generator.unsafeGetGeneratorImpl())->number;
}

void register_device(int count) {
  static Hooks hooks;
  static const bool once = [] {
    at::RegisterPrivateUse1HooksInterface(&hooks);
    return true;
  }();
  (void)once;
  device_count = static_cast<int16_t>(count);
}

} // namespace genie
