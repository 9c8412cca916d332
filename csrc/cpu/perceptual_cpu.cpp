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
  FeatureMaps s;
  s.images = features.size(0);
  s.channels = features.size(1);
  s.positions = features.size(2) * features.size(3);
  s.channels_last = is_channels_last(features, "features");
  STD_TORCH_CHECK(
      s.channels_last ? has_channels_last(target) : target.is_contiguous(), "target must be in the features' layout");
  s.dtype = floating_dtype(features, "features");
  s.epsilon = epsilon;
  s.features = features.const_data_ptr();
  s.target = target.const_data_ptr();
  return s;
}

MaxPool pool_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "input must have 4 dimensions, got ", x.dim());
  STD_TORCH_CHECK(x.is_contiguous(), "input must be contiguous");
  STD_TORCH_CHECK(x.size(2) >= 2 && x.size(3) >= 2, "input must have sides of at least 2");
  return {x.size(0) * x.size(1), x.size(2), x.size(3), floating_dtype(x, "input"), x.const_data_ptr()};
}

}  // namespace

Tensor feature_distance_cpu(Tensor features, Tensor target, double epsilon) {
  FeatureMaps s = maps_of(features, target, epsilon);
  const Tensor loss = torch::stable::new_empty(features, std::vector<int64_t>{s.images}, accumulation_type(s.dtype));
  s.out = loss.mutable_data_ptr();
  kernels().feature_distance(s);
  return loss;
}

Tensor feature_distance_gradient_cpu(Tensor grad_loss, Tensor features, Tensor target, double epsilon) {
  FeatureMaps s = maps_of(features, target, epsilon);
  check_shape(grad_loss, "grad_loss", {s.images});
  check_type(grad_loss, "grad_loss", accumulation_type(s.dtype));
  STD_TORCH_CHECK(grad_loss.is_contiguous(), "grad_loss must be contiguous");
  const Tensor gradient = torch::stable::empty_like(features);
  s.grad = grad_loss.const_data_ptr();
  s.out = gradient.mutable_data_ptr();
  kernels().feature_distance(s);
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
