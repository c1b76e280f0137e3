// A device named npu whose memory is the host's and whose kernels are those of the CPU.
//
// Every operator runs as it would on a real backend: through the dispatcher, below autograd, on
// tensors of a device of its own. The kernel gets CPU tensors that share the memory, strides
// included, so results have the CPU's bits. What torch_npu refuses is refused: memory formats but
// the contiguous one, float64, tensors of different devices. What makes a host wait is counted.

#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_to_copy_native.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr auto kNpu = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kNpu, 0);

// ---- What is counted ----

// Never destroyed: threads of autograd's and tensors of Python's outlive what is static.
std::mutex& mutex = *new std::mutex;
auto& operators = *new std::map<std::string, std::int64_t>;
auto& events = *new std::map<std::string, std::int64_t>;
auto& pinned = *new std::set<void*>;
std::atomic<std::int64_t> held{0}, peak{0}, limit{0};

void count(std::map<std::string, std::int64_t>& table, const std::string& name,
           std::int64_t more = 1) {
  const std::lock_guard<std::mutex> lock(mutex);
  table[name] += more;
}

// ---- Memory ----

struct Block {
  c10::DataPtr data;
  std::int64_t bytes;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  held -= block->bytes;
  delete block;
}

c10::DataPtr owned(c10::DataPtr data, std::int64_t bytes) {
  const std::int64_t now = held += bytes;
  if (limit > 0 && now > limit) {
    held -= bytes;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "NPU out of memory. Tried to allocate ", bytes,
                     " bytes; ", held.load(), " of ", limit.load(), " are in use");
  }
  std::int64_t before = peak;
  while (now > before && !peak.compare_exchange_weak(before, now)) {
  }
  void* at = data.get();
  return {at, new Block{std::move(data), bytes}, &release, kDevice};
}

struct NpuAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    return owned(c10::GetCPUAllocator()->allocate(bytes), static_cast<std::int64_t>(bytes));
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
auto& npu_allocator = *new NpuAllocator;
REGISTER_ALLOCATOR(kNpu, &npu_allocator);

void release_pinned(void* context) {
  auto* data = static_cast<c10::DataPtr*>(context);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    pinned.erase(data->get());
  }
  delete data;
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    auto* data = new c10::DataPtr(c10::GetCPUAllocator()->allocate(bytes));
    void* at = data->get();
    const std::lock_guard<std::mutex> lock(mutex);
    pinned.insert(at);
    return {at, data, &release_pinned, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
auto& pinned_allocator = *new PinnedAllocator;

bool is_pinned(const at::Tensor& tensor) {
  const std::lock_guard<std::mutex> lock(mutex);
  return pinned.count(tensor.storage().mutable_data()) > 0;
}

// ---- One device, streams in name, nothing asynchronous ----

std::atomic<c10::StreamId> streams{0};
thread_local c10::StreamId current_stream = 0;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::Stream stream(c10::StreamId id) const {
    return c10::Stream(c10::Stream::UNSAFE, kDevice, id);
  }
  c10::DeviceType type() const override { return kNpu; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(current_stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(++streams); }
  c10::Stream exchangeStream(c10::Stream next) const override {
    const c10::StreamId before = current_stream;
    current_stream = next.id();
    return stream(before);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { count(events, "synchronize"); }
  void synchronizeEvent(void*) const override { count(events, "synchronize"); }
  void synchronizeDevice(const c10::DeviceIndex) const override { count(events, "synchronize"); }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void* data) const override {
    const std::lock_guard<std::mutex> lock(mutex);
    return pinned.count(const_cast<void*>(data)) > 0;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
};
const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

// ---- Tensors of the device and of the CPU that share memory ----

bool on_npu(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kNpu; }

void refuse_double(c10::ScalarType type, std::int64_t values) {
  // Scales of the loss scaler are turned over in float64, one value at a time.
  TORCH_CHECK(type != c10::ScalarType::Double || values <= 1,
              "npu: float64 is not supported by this device");
}

void refuse_format(std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(!format || *format == c10::MemoryFormat::Contiguous ||
                  *format == c10::MemoryFormat::Preserve,
              "Only contiguous_format or preserve_format is supported.");
}

at::Tensor made(c10::Storage storage, c10::DispatchKey key, const at::Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(),
                                                      like.storage_offset());
  return tensor;
}

at::Tensor as_cpu(const at::Tensor& tensor) {
  c10::DataPtr data(tensor.storage().mutable_data(), c10::Device(c10::DeviceType::CPU));
  return made(c10::Storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
                           std::move(data), c10::GetCPUAllocator(), true),
              c10::DispatchKey::CPU, tensor);
}

struct Shared {
  at::Tensor npu, cpu;
};

at::Tensor as_npu(const at::Tensor& result, const std::vector<Shared>& shared) {
  if (!result.defined()) return result;
  for (const Shared& one : shared) {
    if (one.cpu.is_same(result)) return one.npu;
  }
  refuse_double(result.scalar_type(), result.numel());
  void* data = result.storage().mutable_data();
  for (const Shared& one : shared) {
    if (data != nullptr && one.npu.storage().mutable_data() == data) {
      // A view is under inference mode what its base is.
      auto view = at::detail::make_tensor<c10::TensorImpl>(
          c10::TensorImpl::VIEW, c10::Storage(one.npu.storage()), one.npu.key_set(),
          result.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(result.sizes(), result.strides(),
                                                        result.storage_offset());
      return view;
    }
  }
  const auto bytes = static_cast<std::int64_t>(result.storage().nbytes());
  auto* keeper = new at::Tensor(result);
  c10::DataPtr holding(data, keeper, [](void* at) { delete static_cast<at::Tensor*>(at); },
                       c10::Device(c10::DeviceType::CPU));
  return made(c10::Storage(c10::Storage::use_byte_size_t(), bytes, owned(std::move(holding), bytes),
                           &npu_allocator, true),
              c10::DispatchKey::PrivateUse1, result);
}

// What an operator did to the shape or the memory of an argument, as resizing a result does.
void take_over(const Shared& one) {
  if (one.cpu.storage().mutable_data() != one.npu.storage().mutable_data()) {
    const auto bytes = static_cast<std::int64_t>(one.cpu.storage().nbytes());
    auto* keeper = new at::Tensor(one.cpu);
    c10::DataPtr holding(one.cpu.storage().mutable_data(), keeper,
                         [](void* at) { delete static_cast<at::Tensor*>(at); },
                         c10::Device(c10::DeviceType::CPU));
    one.npu.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(owned(std::move(holding), bytes));
    one.npu.storage().unsafeGetStorageImpl()->set_nbytes(bytes);
  }
  if (one.cpu.sizes() != one.npu.sizes() || one.cpu.strides() != one.npu.strides() ||
      one.cpu.storage_offset() != one.npu.storage_offset()) {
    one.npu.unsafeGetTensorImpl()->set_sizes_and_strides(one.cpu.sizes(), one.cpu.strides(),
                                                         one.cpu.storage_offset());
  }
}

// ---- Every operator ----

const auto& kShapeFromValues = *new std::set<std::string>{
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::repeat_interleave.Tensor", "aten::bincount"};

class Arguments {
 public:
  explicit Arguments(const std::string& name) : name_(name) {}

  c10::IValue operator()(const c10::IValue& value) {
    if (value.isTensor()) return translated(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& each : value.toTensorVector()) list.push_back(translated(each));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& each : value.toOptionalTensorVector()) {
        list.push_back(each && each->defined() ? std::optional<at::Tensor>(translated(*each))
                                               : each);
      }
      return list;
    }
    if (value.isDevice()) return c10::Device(c10::DeviceType::CPU);
    return value;
  }

  const std::vector<Shared>& shared() const { return shared_; }

 private:
  at::Tensor translated(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!on_npu(tensor)) {
      TORCH_CHECK(tensor.dim() == 0, "npu: ", name_,
                  " got tensors of different devices: expected all on npu:0, found one of ",
                  tensor.sizes(), " on ", tensor.device());
      return tensor;
    }
    for (const Shared& one : shared_) {
      if (one.npu.is_same(tensor)) return one.cpu;
    }
    shared_.push_back({tensor, as_cpu(tensor)});
    return shared_.back().cpu;
  }

  std::string name_;
  std::vector<Shared> shared_;
};

c10::OperatorHandle find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

void on_cpu(const c10::OperatorHandle& asked, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  std::string name = asked.schema().name();
  if (!asked.schema().overload_name().empty()) name += "." + asked.schema().overload_name();
  count(operators, name);
  const auto arguments = torch::jit::pop(*stack, asked.schema().arguments().size());
  Arguments translate(name);
  torch::jit::Stack inner;
  for (const c10::IValue& value : arguments) inner.push_back(translate(value));

  c10::OperatorHandle op = asked;
  if (name == "aten::convolution_overrideable") op = find("aten::convolution");
  if (name == "aten::convolution_backward_overrideable") {
    op = find("aten::convolution_backward");
    const std::int64_t channels = inner[0].toTensor().size(1);
    inner.insert(inner.begin() + 3, c10::IValue(c10::List<std::int64_t>({channels})));
  }
  // A mask as an index comes by way of nonzero.
  if (kShapeFromValues.count(name) > 0) count(events, "host_read");
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &inner);

  for (const Shared& one : translate.shared()) take_over(one);
  bool read = inner.empty() ? false : true;
  for (const c10::IValue& value : inner) {
    if (value.isTensor()) {
      read = false;
      stack->push_back(as_npu(value.toTensor(), translate.shared()));
    } else if (value.isTensorList()) {
      read = false;
      c10::List<at::Tensor> list;
      for (const at::Tensor& each : value.toTensorVector()) {
        list.push_back(as_npu(each, translate.shared()));
      }
      stack->push_back(list);
    } else {
      stack->push_back(value);
    }
  }
  // An answer that is no tensor, as that of equal, is read by the host.
  if (read) count(events, "host_read");
}

// ---- What a backend has to have of its own ----

at::Tensor empty(at::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                 std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>,
                 std::optional<c10::MemoryFormat> format) {
  refuse_format(format);
  const auto type = c10::dtype_or_default(dtype);
  refuse_double(type, c10::multiply_integers(size));
  return at::detail::empty_generic(size, &npu_allocator,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), type,
                                   std::nullopt);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                         std::optional<c10::Device>, std::optional<bool>) {
  const auto type = c10::dtype_or_default(dtype);
  refuse_double(type, c10::multiply_integers(size));
  return at::detail::empty_strided_generic(size, stride, &npu_allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           type);
}

at::Tensor to_copy(const at::Tensor& self, std::optional<c10::ScalarType> dtype,
                   std::optional<c10::Layout> layout, std::optional<c10::Device> device,
                   std::optional<bool> pin, bool non_blocking,
                   std::optional<c10::MemoryFormat> format) {
  refuse_format(format);
  return at::native::_to_copy(self, dtype, layout, device, pin, non_blocking, format);
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  const bool from_npu = on_npu(self), to_npu = on_npu(to);
  const at::Tensor source = from_npu ? as_cpu(self) : self;
  at::Tensor target = to_npu ? as_cpu(to) : to;
  const auto bytes = static_cast<std::int64_t>(self.numel() * self.itemsize());
  if (from_npu && to_npu) {
    count(operators, "aten::copy_");
  } else if (from_npu) {
    const bool awaited = !(non_blocking && is_pinned(to));
    count(events, awaited ? "host_read" : "copy_to_host");
    count(events, "bytes_to_host", bytes);
  } else {
    const bool awaited = !(non_blocking && is_pinned(self));
    count(events, awaited ? "awaited_copy_to_device" : "copy_to_device");
    if (current_stream != 0) count(events, "copy_beside");
    count(events, "bytes_to_device", bytes);
  }
  target.copy_(source);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

c10::Scalar read_scalar(const at::Tensor& self) {
  count(events, "host_read");
  return as_cpu(self).item();
}

at::Tensor& set_storage(at::Tensor& self, c10::Storage storage, std::int64_t offset,
                        at::IntArrayRef size, at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  if (stride.data() == nullptr) {
    self.unsafeGetTensorImpl()->set_storage_offset(offset);
    self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  } else {
    self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  }
  return self;
}

void record_stream(at::Tensor&, c10::Stream) {}

std::string report() {
  const std::lock_guard<std::mutex> lock(mutex);
  std::ostringstream text;
  const auto table = [&](const std::map<std::string, std::int64_t>& counts) {
    const char* between = "";
    text << "{";
    for (const auto& [name, times] : counts) {
      text << between << '"' << name << "\": " << times;
      between = ", ";
    }
    text << "}";
  };
  text << "{\"operators\": ";
  table(operators);
  text << ", \"events\": ";
  table(events);
  text << ", \"held\": " << held << ", \"peak\": " << peak << "}";
  return text.str();
}

void reset() {
  const std::lock_guard<std::mutex> lock(mutex);
  operators.clear();
  events.clear();
  peak = held.load();
}

void set_limit(std::int64_t bytes) { limit = bytes; }

TORCH_LIBRARY(simulated_npu, m) {
  m.def("report", &report);
  m.def("reset", &reset);
  m.def("set_limit", &set_limit);
  m.def("shared(Tensor self) -> Tensor");
}

// The memory of a tensor as a CPU tensor, for a collective backend that has no hardware either.
TORCH_LIBRARY_IMPL(simulated_npu, PrivateUse1, m) { m.impl("shared", &as_cpu); }

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_to_copy", &to_copy);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &read_scalar);
  m.impl("record_stream", &record_stream);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  // Where the dispatcher would take a kernel for any device that cannot know this one.
  for (const char* name : {"convolution_overrideable", "convolution_backward_overrideable",
                           "as_strided", "view", "_reshape_alias", "resize_"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
  }
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define SINGLE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  using namespace at::autocast;
  LOWER(_convolution)
  LOWER(conv2d)
  LOWER(convolution)
  LOWER(addmm)
  LOWER(matmul)
  LOWER(mm)
  LOWER(linear)
  LOWER(bmm)
  LOWER(baddbmm)
  SINGLE(exp)
  SINGLE(log)
  SINGLE(log2)
  SINGLE(pow, Tensor_Scalar)
  SINGLE(softplus)
  SINGLE(nll_loss)
  SINGLE(smooth_l1_loss)
  SINGLE(binary_cross_entropy_with_logits)
  KERNEL_PRIVATEUSEONE(softmax, int, fp32_set_opt_dtype)
  KERNEL_PRIVATEUSEONE(log_softmax, int, fp32_set_opt_dtype)
  KERNEL_PRIVATEUSEONE(sum, fp32_set_opt_dtype)
  KERNEL_PRIVATEUSEONE(sum, dim_IntList, fp32_set_opt_dtype)
  KERNEL_PRIVATEUSEONE(cat, promote)
  KERNEL_PRIVATEUSEONE(stack, promote)
}

}  // namespace
