#include "geometry.h"
#include "unboxed.h"

#include <ATen/ATen.h>
#include <torch/library.h>

namespace genie {

namespace {

// Floating point of one type on one device: the result is of that type, whatever the dimensions.
bool alike(const at::Tensor& a, const at::Tensor& b) {
  return is_plain(a) && is_plain(b) && usual(a) && usual(b) && a.scalar_type() == b.scalar_type() &&
      at::isFloatingType(a.scalar_type()) && a.device() == b.device();
}

bool broadcast(const at::Tensor& a, const at::Tensor& b, Spec& spec) {
  spec.dtype = a.scalar_type();
  spec.sizes.assign(a.sizes().begin(), a.sizes().end());
  if (!broadcast_into(spec, b.sizes())) {
    return false;
  }
  set_contiguous(spec);
  return true;
}

at::Tensor pointwise(const Operator& op, const at::Tensor& a, const at::Tensor& b) {
  Spec spec;
  if (!alike(a, b) || !broadcast(a, b, spec)) {
    return boxed(op, a, b);
  }
  return write_one(op, {&a, &b}, 0, spec, nullptr, [](Writer&) {});
}

at::Tensor scaled(const Operator& op, const at::Tensor& a, const at::Tensor& b, const at::Scalar& alpha) {
  Spec spec;
  const bool known = alpha.isIntegral(/*includeBool=*/false) || alpha.isFloatingPoint();
  if (!known || alpha.isSymbolic() || !alike(a, b) || !broadcast(a, b, spec)) {
    return boxed(op, a, b, alpha);
  }
  return write_one(op, {&a, &b}, 1, spec, nullptr, [&](Writer& writer) {
    alpha.isFloatingPoint() ? writer.real(alpha.toDouble()) : writer.integer(alpha.toLong());
  });
}

at::Tensor add(const at::Tensor& self, const at::Tensor& other, const at::Scalar& alpha) {
  static const Operator& op = named("aten::add", "Tensor");
  return scaled(op, self, other, alpha);
}

at::Tensor sub(const at::Tensor& self, const at::Tensor& other, const at::Scalar& alpha) {
  static const Operator& op = named("aten::sub", "Tensor");
  return scaled(op, self, other, alpha);
}

at::Tensor mul(const at::Tensor& self, const at::Tensor& other) {
  static const Operator& op = named("aten::mul", "Tensor");
  return pointwise(op, self, other);
}

at::Tensor div(const at::Tensor& self, const at::Tensor& other) {
  static const Operator& op = named("aten::div", "Tensor");
  return pointwise(op, self, other);
}

// Products of matrices are contiguous whatever the operands' strides.
at::Tensor product(const Operator& op, const at::Tensor& a, const at::Tensor& b, int64_t rank) {
  const bool fits = on_device(a) && on_device(b) && usual(a) && usual(b) && a.device() == b.device() &&
      a.scalar_type() == b.scalar_type() && at::isFloatingType(a.scalar_type()) && a.dim() == rank &&
      b.dim() == rank && a.size(-1) == b.size(-2) && (rank == 2 || a.size(0) == b.size(0));
  if (!fits) {
    return boxed(op, a, b);
  }
  Spec spec;
  spec.dtype = a.scalar_type();
  if (rank == 3) {
    spec.sizes.push_back(a.size(0));
  }
  spec.sizes.push_back(a.size(-2));
  spec.sizes.push_back(b.size(-1));
  set_contiguous(spec);
  return write_one(op, {&a, &b}, 0, spec, nullptr, [](Writer&) {});
}

at::Tensor mm(const at::Tensor& self, const at::Tensor& other) {
  static const Operator& op = named("aten::mm", "");
  return product(op, self, other, 2);
}

at::Tensor bmm(const at::Tensor& self, const at::Tensor& other) {
  static const Operator& op = named("aten::bmm", "");
  return product(op, self, other, 3);
}

} // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("add.Tensor", add);
  m.impl("sub.Tensor", sub);
  m.impl("mul.Tensor", mul);
  m.impl("div.Tensor", div);
  m.impl("mm", mm);
  m.impl("bmm", bmm);
}

} // namespace genie
