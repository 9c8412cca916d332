// sample_patches on CPU tensors.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

void framework_log(double* values, int64_t count) {
  if (count == 0) return;
  Tensor tensor = torch::stable::empty(std::vector<int64_t>{count}, ScalarType::Double);
  std::copy_n(values, count, tensor.mutable_data_ptr<double>());
  std::array<StableIValue, 1> stack{torch::stable::detail::from(tensor)};
  if (torch_call_dispatcher("aten::log", "", stack.data(), TORCH_ABI_VERSION) != TORCH_SUCCESS)
    throw std::runtime_error("aten::log failed");
  const Tensor result = torch::stable::detail::to<Tensor>(stack[0]);
  std::copy_n(result.const_data_ptr<double>(), count, values);
}

}  // namespace

constexpr double MAX_BOOST = 1e30;  // as the reference's: no sum of weights overflows

Tensor sample_patches_cpu(
    Tensor density, std::optional<Tensor> region, Tensor uniform, int64_t num_patches, double threshold, double boost) {
  STD_TORCH_CHECK(density.dim() == 2, "density must have 2 dimensions, got ", density.dim());
  Sampling s{};
  s.images = density.size(0);
  s.positions = density.size(1);
  s.samples = num_patches;
  STD_TORCH_CHECK(
      num_patches >= 1 && num_patches <= s.positions, "num_patches must be 1 to ", s.positions, ", got ", num_patches);
  const Dtype density_type = floating_dtype(density, "density"), uniform_type = floating_dtype(uniform, "uniform");
  STD_TORCH_CHECK(
      (density_type == Dtype::f32 || density_type == Dtype::f64) &&
          (uniform_type == Dtype::f32 || uniform_type == Dtype::f64),
      "density and uniform must be float32 or float64");
  check_shape(uniform, "uniform", {s.images, s.positions});
  STD_TORCH_CHECK(density.is_contiguous() && uniform.is_contiguous(), "density and uniform must be contiguous");
  s.density = density.const_data_ptr();
  s.density_double = density_type == Dtype::f64;
  s.uniform = uniform.const_data_ptr();
  s.uniform_double = uniform_type == Dtype::f64;
  if (region) {
    check_shape(*region, "region", {s.images, s.positions});
    check_type(*region, "region", ScalarType::Long);
    s.region = contiguous_data<int64_t>(*region, "region");
  }
  STD_TORCH_CHECK(threshold >= 0, "threshold must be non-negative, got ", threshold);
  STD_TORCH_CHECK(boost > 0 && boost <= MAX_BOOST, "boost must be above 0 and at most ", MAX_BOOST, ", got ", boost);
  s.threshold = threshold;
  s.boost = boost;
  const Tensor index =
      torch::stable::new_empty(density, std::vector<int64_t>{s.images, num_patches}, ScalarType::Long);
  s.index = index.mutable_data_ptr<int64_t>();
  sample_patches(s, framework_log);
  return index;
}

}  // namespace fastsketch
