// attention_statistics on CPU tensors: checks, outputs, and the kernel of the accumulation type.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

Attention problem(const Tensor& query, const Tensor& key, double scale) {
  Attention p{};
  p.query = view3(query, "query");
  p.key = view3(key, "key");
  p.images = query.size(0);
  p.rows = query.size(1);
  p.columns = key.size(1);
  p.width = query.size(2);
  check_shape(key, "key", {p.images, p.columns, p.width});
  check_type(key, "key", query.scalar_type());
  STD_TORCH_CHECK(query.numel() && key.numel(), "query and key must not be empty");
  p.scale = scale;
  return p;
}

Tensor empty_of(const Tensor& like, std::vector<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> attention_statistics_forward_cpu(Tensor query, Tensor key, double scale) {
  const Attention p = problem(query, key, scale);
  const ScalarType type = accumulation_type(p.query.dtype);
  const Tensor received = empty_of(query, {p.images, p.columns}, type);
  const Tensor entropy = empty_of(query, {p.images, p.rows}, type), lse = empty_of(query, {p.images, p.rows}, type);
  in_type(type == ScalarType::Double, [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().attention_forward(
        p, {received.mutable_data_ptr<T>(), entropy.mutable_data_ptr<T>(), lse.mutable_data_ptr<T>()});
  });
  return {received, entropy, lse};
}

std::tuple<Tensor, Tensor> attention_statistics_backward_cpu(
    Tensor grad_received, Tensor grad_entropy, Tensor query, Tensor key, Tensor entropy, Tensor lse, double scale) {
  const Attention p = problem(query, key, scale);
  check_shape(grad_received, "grad_received", {p.images, p.columns});
  check_shape(grad_entropy, "grad_entropy", {p.images, p.rows});
  check_shape(entropy, "entropy", {p.images, p.rows});
  check_shape(lse, "lse", {p.images, p.rows});
  const ScalarType type = accumulation_type(p.query.dtype);
  const Tensor grad_query = empty_of(query, {p.images, p.rows, p.width}, type);
  const Tensor grad_key = empty_of(query, {p.images, p.columns, p.width}, type);
  in_type(type == ScalarType::Double, [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().attention_backward(
        p, {contiguous_data<T>(grad_received, "grad_received"), contiguous_data<T>(grad_entropy, "grad_entropy"),
            contiguous_data<T>(entropy, "entropy"), contiguous_data<T>(lse, "lse"), grad_query.mutable_data_ptr<T>(),
            grad_key.mutable_data_ptr<T>()});
  });
  return {grad_query, grad_key};
}

}  // namespace fastsketch
