// Blurs of CPU tensors: checks, outputs, and the kernel.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

// `from` [B, C, ...] blurred to [B, C, rows, columns], in its layout.
Tensor blurred(Blur s, const Tensor& from, const char* name, int64_t rows, int64_t columns) {
  const bool last = is_channels_last(from, name);
  STD_TORCH_CHECK(s.height >= 2 && s.width >= 2, name, " must have sides of at least 2");
  s.dtype = floating_dtype(from, name);
  s.maps = from.size(0) * (last ? 1 : from.size(1));
  s.channels = last ? from.size(1) : 1;
  const Tensor to = torch::stable::empty(
      std::vector<int64_t>{from.size(0), from.size(1), rows, columns}, from.scalar_type(), std::nullopt, std::nullopt,
      std::nullopt, last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
  kernels().blur(s, from.const_data_ptr(), to.mutable_data_ptr());
  return to;
}

void check_map(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4, name, " must have 4 dimensions, got ", x.dim());
}

}  // namespace

Tensor blur_downsample_cpu(Tensor input) {
  check_map(input, "input");
  const int64_t height = input.size(2), width = input.size(3);
  return blurred({Blur::down, height, width}, input, "input", (height + 1) / 2, (width + 1) / 2);
}

Tensor blur_downsample_gradient_cpu(Tensor grad_output, int64_t height, int64_t width) {
  check_map(grad_output, "grad_output");
  check_shape(grad_output, "grad_output", {grad_output.size(0), grad_output.size(1), (height + 1) / 2, (width + 1) / 2});
  return blurred({Blur::down_gradient, height, width}, grad_output, "grad_output", height, width);
}

Tensor blur_upsample_cpu(Tensor input) {
  check_map(input, "input");
  const int64_t height = input.size(2), width = input.size(3);
  return blurred({Blur::up, height, width}, input, "input", 2 * height, 2 * width);
}

Tensor blur_upsample_gradient_cpu(Tensor grad_output) {
  check_map(grad_output, "grad_output");
  const int64_t height = grad_output.size(2), width = grad_output.size(3);
  STD_TORCH_CHECK(height % 2 == 0 && width % 2 == 0, "grad_output must have even sides, got ", height, " and ", width);
  return blurred({Blur::up_gradient, height / 2, width / 2}, grad_output, "grad_output", height / 2, width / 2);
}

}  // namespace fastsketch
