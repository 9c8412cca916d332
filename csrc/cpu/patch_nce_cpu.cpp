// patch_nce on CPU tensors: checks, outputs, and the kernel of the accumulation type.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

PatchNce problem(
    const Tensor& query, const Tensor& key, const std::optional<Tensor>& region, double temperature, int64_t negatives,
    bool normalize) {
  PatchNce p{};
  p.query = view3(query, "query");
  p.key = view3(key, "key");
  p.images = query.size(0);
  p.samples = query.size(1);
  p.width = query.size(2);
  check_shape(key, "key", {p.images, p.samples, p.width});
  check_type(key, "key", query.scalar_type());
  STD_TORCH_CHECK(negatives >= 0 && negatives <= 2, "negatives must be 0, 1 or 2, got ", negatives);
  p.negatives = static_cast<Negatives>(negatives);
  STD_TORCH_CHECK(
      region.has_value() == (p.negatives != Negatives::image), "region must be given with regional negatives only");
  if (region) {
    check_shape(*region, "region", {p.images, p.samples});
    check_type(*region, "region", ScalarType::Int);
    p.region = contiguous_data<int32_t>(*region, "region");
  }
  p.temperature = temperature;
  p.normalize = normalize;
  return p;
}

Tensor empty_of(const Tensor& like, std::vector<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

template <typename T>
T* data_or_null(const Tensor& tensor) {
  return tensor.numel() ? tensor.mutable_data_ptr<T>() : nullptr;
}

template <typename T>
PatchNceBackward<T> backward_arguments(
    const PatchNce& p, const Tensor& grad_loss, const Tensor& lse, const Tensor& qs, const Tensor& ks,
    const Tensor& grad_query, const Tensor& grad_key) {
  PatchNceBackward<T> a{};
  a.grad_loss = contiguous_data<T>(grad_loss, "grad_loss");
  a.lse = contiguous_data<T>(lse, "lse");
  if (p.normalize) {
    check_shape(qs, "query_scale", {p.images, p.samples});
    check_shape(ks, "key_scale", {p.images, p.samples});
    a.query_scale = contiguous_data<T>(qs, "query_scale");
    a.key_scale = contiguous_data<T>(ks, "key_scale");
  }
  a.grad_query = data_or_null<T>(grad_query);
  a.grad_key = data_or_null<T>(grad_key);
  return a;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> patch_nce_forward_cpu(
    Tensor query, Tensor key, std::optional<Tensor> region, double temperature, int64_t negatives, bool normalize,
    bool with_gradient) {
  const PatchNce p = problem(query, key, region, temperature, negatives, normalize);
  const ScalarType type = accumulation_type(p.query.dtype);
  const std::vector<int64_t> shape = {p.images, p.samples}, none = {0};
  const Tensor loss = empty_of(query, shape, type), lse = empty_of(query, shape, type);
  const Tensor query_scale = empty_of(query, normalize ? shape : none, type);
  const Tensor key_scale = empty_of(query, normalize ? shape : none, type);
  const Tensor gradient =
      empty_of(query, with_gradient ? std::vector<int64_t>{p.images, p.samples, p.width} : none, type);
  if (loss.numel())
    in_type(type == ScalarType::Double, [&](auto zero) {
      using T = decltype(zero);
      kernels().of<T>().patch_nce_forward(
          p, {loss.mutable_data_ptr<T>(), lse.mutable_data_ptr<T>(), data_or_null<T>(query_scale),
              data_or_null<T>(key_scale), data_or_null<T>(gradient)});
    });
  return {loss, lse, query_scale, key_scale, gradient};
}

std::tuple<Tensor, Tensor> patch_nce_backward_cpu(
    Tensor grad_loss, Tensor query, Tensor key, std::optional<Tensor> region, Tensor lse, Tensor query_scale,
    Tensor key_scale, double temperature, int64_t negatives, bool normalize, bool need_query, bool need_key) {
  const PatchNce p = problem(query, key, region, temperature, negatives, normalize);
  check_shape(grad_loss, "grad_loss", {p.images, p.samples});
  check_shape(lse, "lse", {p.images, p.samples});
  const ScalarType type = accumulation_type(p.query.dtype);
  const std::vector<int64_t> shape = {p.images, p.samples, p.width}, none = {0};
  const Tensor grad_query = empty_of(query, need_query ? shape : none, type);
  const Tensor grad_key = empty_of(query, need_key ? shape : none, type);
  if (grad_query.numel() || grad_key.numel())
    in_type(type == ScalarType::Double, [&](auto zero) {
      using T = decltype(zero);
      kernels().of<T>().patch_nce_backward(
          p, backward_arguments<T>(p, grad_loss, lse, query_scale, key_scale, grad_query, grad_key));
    });
  return {grad_query, grad_key};
}

}  // namespace fastsketch
