// Attention over values of bfloat16 rows on CPU tensors: checks, outputs, and AMX's kernel.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

const BFloat16* rows_of(const Tensor& tensor, const char* name) {
  check_type(tensor, name, ScalarType::BFloat16);
  return contiguous_data<BFloat16>(tensor, name);
}

Attend shape_of(const Tensor& query, const Tensor& key, const Tensor& value, double scale) {
  STD_TORCH_CHECK(tile_kernels().attend_rows_forward, "attend_rows_forward needs AMX, which is not in use");
  STD_TORCH_CHECK(query.dim() == 3, "query must have 3 dimensions, got ", query.dim());
  STD_TORCH_CHECK(key.dim() == 3, "key must have 3 dimensions, got ", key.dim());
  STD_TORCH_CHECK(value.dim() == 3, "value must have 3 dimensions, got ", value.dim());
  const Attend p{query.size(0), query.size(1), key.size(1), query.size(2), value.size(2), scale};
  check_shape(key, "key", {p.images, p.keys, p.width});
  check_shape(value, "value", {p.images, p.keys, p.channels});
  STD_TORCH_CHECK(p.keys > 0, "key must hold at least one");
  STD_TORCH_CHECK(scale > 0, "scale must be positive, got ", scale);
  return p;
}

AttendRows inputs(const Tensor& query, const Tensor& key, const Tensor& value) {
  return {rows_of(query, "query"), rows_of(key, "key"), rows_of(value, "value")};
}

}  // namespace

std::tuple<Tensor, Tensor> attend_rows_forward_cpu(Tensor query, Tensor key, Tensor value, double scale) {
  const Attend p = shape_of(query, key, value, scale);
  const AttendRows in = inputs(query, key, value);
  const Tensor output =
      torch::stable::new_empty(query, std::vector<int64_t>{p.images, p.queries, p.channels}, ScalarType::Float);
  const Tensor lse = torch::stable::new_empty(query, std::vector<int64_t>{p.images, p.queries}, ScalarType::Float);
  tile_kernels().attend_rows_forward(p, in, output.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>());
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> attend_rows_backward_cpu(
    Tensor grad_output, Tensor output, Tensor lse, Tensor query, Tensor key, Tensor value, double scale) {
  const Attend p = shape_of(query, key, value, scale);
  check_shape(grad_output, "grad_output", {p.images, p.queries, p.channels});
  check_shape(output, "output", {p.images, p.queries, p.channels});
  check_shape(lse, "lse", {p.images, p.queries});
  check_type(output, "output", ScalarType::Float);
  check_type(lse, "lse", ScalarType::Float);
  Tensor grad_query = torch::stable::empty_like(query), grad_key = torch::stable::empty_like(key);
  Tensor grad_value = torch::stable::empty_like(value);
  if (p.queries == 0) return {grad_query, torch::stable::zero_(grad_key), torch::stable::zero_(grad_value)};
  tile_kernels().attend_rows_backward(
      p, inputs(query, key, value),
      {rows_of(grad_output, "grad_output"), contiguous_data<float>(output, "output"),
       contiguous_data<float>(lse, "lse"), grad_query.mutable_data_ptr<BFloat16>(), grad_key.mutable_data_ptr<BFloat16>(),
       grad_value.mutable_data_ptr<BFloat16>()});
  return {grad_query, grad_key, grad_value};
}

}  // namespace fastsketch
