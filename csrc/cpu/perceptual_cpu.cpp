// What a perceptual loss computes besides convolutions, on CPU tensors: checks, outputs, and the kernels.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

FeatureMaps maps_of(const Tensor& features, const Tensor& target, double epsilon) {
  STD_TORCH_CHECK(features.dim() == 4, "features must have 4 dimensions, got ", features.dim());
  STD_TORCH_CHECK(features.numel() > 0, "features must not be empty");
  check_shape(target, "target", {features.size(0), features.size(1), features.size(2), features.size(3)});
  check_type(target, "target", features.scalar_type());
  STD_TORCH_CHECK(epsilon > 0, "epsilon must be positive");
  return {features.size(0), features.size(1), features.size(2) * features.size(3), epsilon};
}

MaxPool pool_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "input must have 4 dimensions, got ", x.dim());
  STD_TORCH_CHECK(x.is_contiguous(), "input must be contiguous");
  STD_TORCH_CHECK(x.size(2) >= 2 && x.size(3) >= 2, "input must have sides of at least 2");
  return {x.size(0) * x.size(1), x.size(2), x.size(3), floating_dtype(x, "input"), x.const_data_ptr()};
}

}  // namespace

Tensor feature_distance_cpu(Tensor features, Tensor target, double epsilon) {
  const FeatureMaps s = maps_of(features, target, epsilon);
  const Tensor loss = torch::stable::new_empty(features, {s.images});
  in_type(is_double(features, "features"), [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().feature_distance(
        s, contiguous_data<T>(features, "features"), contiguous_data<T>(target, "target"), loss.mutable_data_ptr<T>());
  });
  return loss;
}

Tensor feature_distance_gradient_cpu(Tensor grad_loss, Tensor features, Tensor target, double epsilon) {
  const FeatureMaps s = maps_of(features, target, epsilon);
  check_shape(grad_loss, "grad_loss", {s.images});
  check_type(grad_loss, "grad_loss", features.scalar_type());
  const Tensor gradient = torch::stable::empty_like(features);
  in_type(is_double(features, "features"), [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().feature_distance_gradient(
        s, contiguous_data<T>(grad_loss, "grad_loss"), contiguous_data<T>(features, "features"),
        contiguous_data<T>(target, "target"), gradient.mutable_data_ptr<T>());
  });
  return gradient;
}

Tensor max_pool_cpu(Tensor input) {
  MaxPool s = pool_of(input);
  const Tensor out = torch::stable::new_empty(input, {input.size(0), input.size(1), s.height / 2, s.width / 2});
  s.out = out.mutable_data_ptr();
  kernels().max_pool(s);
  return out;
}

Tensor max_pool_gradient_cpu(Tensor grad_output, Tensor input) {
  MaxPool s = pool_of(input);
  check_shape(grad_output, "grad_output", {input.size(0), input.size(1), s.height / 2, s.width / 2});
  check_type(grad_output, "grad_output", input.scalar_type());
  STD_TORCH_CHECK(grad_output.is_contiguous(), "grad_output must be contiguous");
  const Tensor gradient = torch::stable::empty_like(input);
  s.grad = grad_output.const_data_ptr();
  s.out = gradient.mutable_data_ptr();
  kernels().max_pool(s);
  return gradient;
}

}  // namespace fastsketch
