// Instance norm of CPU tensors, with what follows it: checks, outputs, and the kernel.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

InstanceNorm shape_of(const Tensor& x, double slope) {
  STD_TORCH_CHECK(x.dim() == 4, "input must have 4 dimensions, got ", x.dim());
  InstanceNorm s;
  s.images = x.size(0);
  s.channels = x.size(1);
  s.size = x.size(2) * x.size(3);
  s.channels_last = is_channels_last(x, "input");
  s.dtype = floating_dtype(x, "input");
  s.x = x.const_data_ptr();
  s.slope = slope;
  return s;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> instance_norm_cpu(Tensor input, double slope, double eps) {
  InstanceNorm s = shape_of(input, slope);
  const ScalarType type = accumulation_type(s.dtype);
  const Tensor out = torch::stable::empty_like(input);
  const Tensor mean = torch::stable::new_empty(input, std::vector<int64_t>{input.size(0), input.size(1)}, type);
  const Tensor scale = torch::stable::new_empty(input, std::vector<int64_t>{input.size(0), input.size(1)}, type);
  s.eps = eps;
  s.out = out.mutable_data_ptr();
  s.mean = mean.mutable_data_ptr();
  s.scale = scale.mutable_data_ptr();
  kernels().instance_norm(s);
  return {out, mean, scale};
}

Tensor instance_norm_gradient_cpu(Tensor grad_output, Tensor input, Tensor mean, Tensor scale, double slope) {
  InstanceNorm s = shape_of(input, slope);
  check_shape(grad_output, "grad_output", {input.size(0), input.size(1), input.size(2), input.size(3)});
  check_type(grad_output, "grad_output", input.scalar_type());
  STD_TORCH_CHECK(
      s.channels_last ? has_channels_last(grad_output) : grad_output.is_contiguous(),
      "grad_output must have the layout of input");
  for (const auto& [tensor, name] : {std::pair(&mean, "mean"), std::pair(&scale, "scale")}) {
    check_shape(*tensor, name, {input.size(0), input.size(1)});
    check_type(*tensor, name, accumulation_type(s.dtype));
    STD_TORCH_CHECK(tensor->is_contiguous(), name, " must be contiguous");
  }
  const Tensor out = torch::stable::empty_like(input);
  s.grad = grad_output.const_data_ptr();
  s.out = out.mutable_data_ptr();
  s.mean = mean.mutable_data_ptr();
  s.scale = scale.mutable_data_ptr();
  kernels().instance_norm(s);
  return out;
}

}  // namespace fastsketch
