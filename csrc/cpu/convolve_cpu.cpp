// Convolutions of CPU tensors: checks, outputs, and the kernel of the dtype.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

ConvShape checked(const ConvShape& s) {
  STD_TORCH_CHECK(s.size == 3 || s.size == 4 || s.size == 7, "kernel must be 3x3, 4x4 or 7x7, got a side of ", s.size);
  STD_TORCH_CHECK(s.padding >= 0 && s.padding <= 3, "padding must be 0 to 3, got ", s.padding);
  STD_TORCH_CHECK(s.channels > 0 && s.filters > 0, "kernel must have filters and channels");
  STD_TORCH_CHECK(s.out_height() > 0 && s.out_width() > 0, "input is smaller than the kernel");
  STD_TORCH_CHECK(
      !s.reflect || (s.height > s.padding && s.width > s.padding), "input is too small to be reflected by ", s.padding);
  return s;
}

ConvShape shape_of(const Tensor& input, int64_t filters, int64_t size, int64_t padding, bool reflect) {
  STD_TORCH_CHECK(input.dim() == 4, "input must have 4 dimensions, got ", input.dim());
  return checked({input.size(0), input.size(1), input.size(2), input.size(3), filters, size, padding, reflect});
}

}  // namespace

Tensor convolve_cpu(Tensor input, Tensor kernel, std::optional<Tensor> bias, int64_t padding, bool reflect) {
  const bool in_double = is_double(input, "input");
  STD_TORCH_CHECK(kernel.dim() == 4, "kernel must have 4 dimensions, got ", kernel.dim());
  const ConvShape s = shape_of(input, kernel.size(0), kernel.size(2), padding, reflect);
  check_shape(kernel, "kernel", {s.filters, s.channels, s.size, s.size});
  check_type(kernel, "kernel", input.scalar_type());
  if (bias) {
    check_shape(*bias, "bias", {s.filters});
    check_type(*bias, "bias", input.scalar_type());
  }
  const Tensor output = torch::stable::new_empty(
      input, std::vector<int64_t>{s.images, s.filters, s.out_height(), s.out_width()});
  if (output.numel() == 0) return output;
  in_type(in_double, [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().convolve(
        s, contiguous_data<T>(input, "input"), contiguous_data<T>(kernel, "kernel"),
        bias ? contiguous_data<T>(*bias, "bias") : nullptr, output.mutable_data_ptr<T>());
  });
  return output;
}

Tensor convolve_input_gradient_cpu(
    Tensor grad_output, Tensor kernel, int64_t height, int64_t width, int64_t padding, bool reflect) {
  const bool in_double = is_double(grad_output, "grad_output");
  STD_TORCH_CHECK(grad_output.dim() == 4, "grad_output must have 4 dimensions, got ", grad_output.dim());
  STD_TORCH_CHECK(kernel.dim() == 4, "kernel must have 4 dimensions, got ", kernel.dim());
  const ConvShape s = checked(
      {grad_output.size(0), kernel.size(1), height, width, kernel.size(0), kernel.size(2), padding, reflect});
  check_shape(grad_output, "grad_output", {s.images, s.filters, s.out_height(), s.out_width()});
  check_shape(kernel, "kernel", {s.filters, s.channels, s.size, s.size});
  check_type(kernel, "kernel", grad_output.scalar_type());
  const Tensor grad =
      torch::stable::new_empty(grad_output, std::vector<int64_t>{s.images, s.channels, s.height, s.width});
  if (grad.numel() == 0) return grad;
  in_type(in_double, [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().convolve_input_gradient(
        s, contiguous_data<T>(grad_output, "grad_output"), contiguous_data<T>(kernel, "kernel"),
        grad.mutable_data_ptr<T>());
  });
  return grad;
}

Tensor convolve_kernel_gradient_cpu(Tensor input, Tensor grad_output, int64_t size, int64_t padding, bool reflect) {
  const bool in_double = is_double(input, "input");
  STD_TORCH_CHECK(grad_output.dim() == 4, "grad_output must have 4 dimensions, got ", grad_output.dim());
  const ConvShape s = shape_of(input, grad_output.size(1), size, padding, reflect);
  check_shape(grad_output, "grad_output", {s.images, s.filters, s.out_height(), s.out_width()});
  check_type(grad_output, "grad_output", input.scalar_type());
  Tensor grad = torch::stable::new_empty(input, std::vector<int64_t>{s.filters, s.channels, size, size});
  if (grad_output.numel() == 0) return torch::stable::zero_(grad);
  in_type(in_double, [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().convolve_kernel_gradient(
        s, contiguous_data<T>(input, "input"), contiguous_data<T>(grad_output, "grad_output"),
        grad.mutable_data_ptr<T>());
  });
  return grad;
}

}  // namespace fastsketch
