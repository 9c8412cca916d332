// Attention over values of CPU tensors: checks, outputs, and the kernel of the dtype.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

Attend shape_of(const Tensor& query, const Tensor& key, const Tensor& value, double scale) {
  STD_TORCH_CHECK(query.dim() == 3, "query must have 3 dimensions, got ", query.dim());
  STD_TORCH_CHECK(key.dim() == 3, "key must have 3 dimensions, got ", key.dim());
  STD_TORCH_CHECK(value.dim() == 3, "value must have 3 dimensions, got ", value.dim());
  const Attend p{query.size(0), query.size(2), key.size(2), query.size(1), value.size(1), scale};
  check_shape(key, "key", {p.images, p.width, p.keys});
  check_shape(value, "value", {p.images, p.channels, p.keys});
  check_type(key, "key", query.scalar_type());
  check_type(value, "value", query.scalar_type());
  STD_TORCH_CHECK(p.keys > 0, "key must hold at least one");
  return p;
}

template <typename T>
AttendInputs<T> inputs(const Tensor& query, const Tensor& key, const Tensor& value) {
  return {contiguous_data<T>(query, "query"), contiguous_data<T>(key, "key"), contiguous_data<T>(value, "value")};
}

}  // namespace

std::tuple<Tensor, Tensor> attend_forward_cpu(Tensor query, Tensor key, Tensor value, double scale) {
  const bool in_double = is_double(query, "query");
  const Attend p = shape_of(query, key, value, scale);
  const Tensor output = torch::stable::new_empty(query, std::vector<int64_t>{p.images, p.channels, p.queries});
  const Tensor lse = torch::stable::new_empty(query, std::vector<int64_t>{p.images, p.queries});
  in_type(in_double, [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().attend_forward(
        p, inputs<T>(query, key, value), output.mutable_data_ptr<T>(), lse.mutable_data_ptr<T>());
  });
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> attend_backward_cpu(
    Tensor grad_output, Tensor output, Tensor lse, Tensor query, Tensor key, Tensor value, double scale) {
  const bool in_double = is_double(query, "query");
  const Attend p = shape_of(query, key, value, scale);
  check_shape(grad_output, "grad_output", {p.images, p.channels, p.queries});
  check_shape(output, "output", {p.images, p.channels, p.queries});
  check_shape(lse, "lse", {p.images, p.queries});
  check_type(grad_output, "grad_output", query.scalar_type());
  check_type(output, "output", query.scalar_type());
  check_type(lse, "lse", query.scalar_type());
  Tensor grad_query = torch::stable::empty_like(query), grad_key = torch::stable::empty_like(key);
  Tensor grad_value = torch::stable::empty_like(value);
  if (p.queries == 0) return {grad_query, torch::stable::zero_(grad_key), torch::stable::zero_(grad_value)};
  in_type(in_double, [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().attend_backward(
        p, inputs<T>(query, key, value),
        {contiguous_data<T>(grad_output, "grad_output"), contiguous_data<T>(output, "output"),
         contiguous_data<T>(lse, "lse"), grad_query.mutable_data_ptr<T>(), grad_key.mutable_data_ptr<T>(),
         grad_value.mutable_data_ptr<T>()});
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace fastsketch
