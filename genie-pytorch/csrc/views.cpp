#include "unboxed.h"

#include <ATen/ExpandUtils.h>
#include <ATen/InferSize.h>
#include <ATen/TensorUtils.h>
#include <torch/library.h>

namespace genie {

namespace {

// `write` writes the arguments after `self`.
template <typename F>
at::Tensor view_of(const Operator& op, uint32_t arguments, const at::Tensor& self, Spec spec, F&& write) {
  spec.dtype = self.scalar_type();
  spec.conj = self.is_conj();
  spec.neg = self.is_neg();
  return write_one(op, {&self}, arguments - 1, spec, &self, write);
}

void write_list(Writer& writer, at::IntArrayRef list) {
  writer.list(list.size());
  for (const auto item : list) {
    writer.integer(item);
  }
}

int64_t wrapped(int64_t dim, int64_t rank) {
  return dim < 0 ? dim + rank : dim;
}

at::Tensor view(const at::Tensor& self, at::IntArrayRef size) {
  static const Operator& op = named("aten::view", "");
  if (usual(self)) {
    const auto inferred = at::infer_size_dv(size, self.numel());
    if (const auto strides = at::detail::computeStride(self.sizes(), self.strides(), inferred)) {
      Spec spec;
      spec.sizes.assign(inferred.begin(), inferred.end());
      spec.strides.assign(strides->begin(), strides->end());
      spec.offset = self.storage_offset();
      return view_of(op, 2, self, std::move(spec), [&](Writer& writer) { write_list(writer, size); });
    }
  }
  return boxed(op, self, size);
}

at::Tensor transpose(const at::Tensor& self, int64_t dim0, int64_t dim1) {
  static const Operator& op = named("aten::transpose", "int");
  const auto rank = self.dim();
  const auto a = wrapped(dim0, rank), b = wrapped(dim1, rank);
  if (!usual(self) || a < 0 || a >= rank || b < 0 || b >= rank || a == b) {
    return boxed(op, self, dim0, dim1);
  }
  Spec spec;
  spec.sizes.assign(self.sizes().begin(), self.sizes().end());
  spec.strides.assign(self.strides().begin(), self.strides().end());
  spec.offset = self.storage_offset();
  std::swap(spec.sizes[static_cast<size_t>(a)], spec.sizes[static_cast<size_t>(b)]);
  std::swap(spec.strides[static_cast<size_t>(a)], spec.strides[static_cast<size_t>(b)]);
  return view_of(op, 3, self, std::move(spec), [&](Writer& writer) {
    writer.integer(dim0);
    writer.integer(dim1);
  });
}

at::Tensor permute(const at::Tensor& self, at::IntArrayRef dims) {
  static const Operator& op = named("aten::permute", "");
  const auto rank = self.dim();
  bool fine = usual(self) && static_cast<int64_t>(dims.size()) == rank && rank <= 64;
  uint64_t seen = 0;
  Spec spec;
  spec.offset = self.storage_offset();
  for (size_t i = 0; fine && i < dims.size(); ++i) {
    const auto dim = wrapped(dims[i], rank);
    fine = dim >= 0 && dim < rank && !(seen >> dim & 1);
    if (fine) {
      seen |= uint64_t(1) << dim;
      spec.sizes.push_back(self.size(dim));
      spec.strides.push_back(self.stride(dim));
    }
  }
  if (!fine) {
    return boxed(op, self, dims);
  }
  return view_of(op, 2, self, std::move(spec), [&](Writer& writer) { write_list(writer, dims); });
}

at::Tensor expand(const at::Tensor& self, at::IntArrayRef size, bool implicit) {
  static const Operator& op = named("aten::expand", "");
  bool fine = usual(self) && static_cast<int64_t>(size.size()) >= self.dim();
  const auto shift = static_cast<int64_t>(size.size()) - self.dim();
  for (int64_t i = 0; fine && i < static_cast<int64_t>(size.size()); ++i) {
    const auto wanted = size[static_cast<size_t>(i)];
    fine = i < shift ? wanted >= 0 : wanted == -1 || self.size(i - shift) == 1 || self.size(i - shift) == wanted;
    fine = fine && wanted >= -1;
  }
  if (!fine) {
    return boxed(op, self, size, implicit);
  }
  const auto [sizes, strides] = at::inferExpandGeometry(self.sizes(), self.strides(), size);
  Spec spec;
  spec.sizes.assign(sizes.begin(), sizes.end());
  spec.strides.assign(strides.begin(), strides.end());
  spec.offset = self.storage_offset();
  return view_of(op, 3, self, std::move(spec), [&](Writer& writer) {
    write_list(writer, size);
    writer.boolean(implicit);
  });
}

at::Tensor slice(
    const at::Tensor& self,
    int64_t dim,
    std::optional<int64_t> start,
    std::optional<int64_t> end,
    int64_t step) {
  static const Operator& op = named("aten::slice", "Tensor");
  const auto rank = self.dim();
  const auto d = wrapped(dim, rank);
  if (!usual(self) || d < 0 || d >= rank || step <= 0) {
    return boxed(op, self, dim, start, end, step);
  }
  // As at::native::slice clamps them.
  const auto size = self.size(d);
  auto from = start.value_or(0);
  auto to = end.value_or(INT64_MAX);
  from = from < 0 ? from + size : from;
  to = to < 0 ? to + size : to;
  from = from < 0 ? 0 : std::min(from, size);
  to = to < from ? from : std::min(to, size);
  Spec spec;
  spec.sizes.assign(self.sizes().begin(), self.sizes().end());
  spec.strides.assign(self.strides().begin(), self.strides().end());
  spec.offset = self.storage_offset() + from * self.stride(d);
  spec.sizes[static_cast<size_t>(d)] = (to - from + step - 1) / step;
  spec.strides[static_cast<size_t>(d)] *= step;
  return view_of(op, 5, self, std::move(spec), [&](Writer& writer) {
    writer.integer(dim);
    start.has_value() ? writer.integer(*start) : writer.none();
    end.has_value() ? writer.integer(*end) : writer.none();
    writer.integer(step);
  });
}

at::Tensor select(const at::Tensor& self, int64_t dim, int64_t index) {
  static const Operator& op = named("aten::select", "int");
  const auto rank = self.dim();
  const auto d = wrapped(dim, rank);
  const auto i = d >= 0 && d < rank ? wrapped(index, self.size(d)) : -1;
  if (!usual(self) || i < 0 || i >= self.size(d)) {
    return boxed(op, self, dim, index);
  }
  Spec spec;
  for (int64_t k = 0; k < rank; ++k) {
    if (k != d) {
      spec.sizes.push_back(self.size(k));
      spec.strides.push_back(self.stride(k));
    }
  }
  spec.offset = self.storage_offset() + i * self.stride(d);
  return view_of(op, 3, self, std::move(spec), [&](Writer& writer) {
    writer.integer(dim);
    writer.integer(index);
  });
}

at::Tensor unsqueeze(const at::Tensor& self, int64_t dim) {
  static const Operator& op = named("aten::unsqueeze", "");
  const auto rank = self.dim();
  const auto d = wrapped(dim, rank + 1);
  if (!usual(self) || d < 0 || d > rank) {
    return boxed(op, self, dim);
  }
  Spec spec;
  spec.sizes.assign(self.sizes().begin(), self.sizes().end());
  spec.strides.assign(self.strides().begin(), self.strides().end());
  spec.offset = self.storage_offset();
  spec.sizes.insert(spec.sizes.begin() + d, 1);
  spec.strides.insert(spec.strides.begin() + d, d >= rank ? 1 : self.size(d) * self.stride(d));
  return view_of(op, 2, self, std::move(spec), [&](Writer& writer) { writer.integer(dim); });
}

} // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("view", view);
  m.impl("transpose.int", transpose);
  m.impl("permute", permute);
  m.impl("expand", expand);
  m.impl("slice.Tensor", slice);
  m.impl("select.int", select);
  m.impl("unsqueeze", unsqueeze);
}

} // namespace genie
