// transport_plan on CPU tensors: checks, outputs, and the kernel of the dtype.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

Transport problem(const Tensor& cost, const char* name, double epsilon, int64_t iterations) {
  STD_TORCH_CHECK(cost.dim() == 3 && cost.numel(), name, " must have 3 dimensions and not be empty");
  STD_TORCH_CHECK(epsilon > 0 && iterations > 0, "epsilon and iterations must be positive");
  return {cost.size(0), cost.size(1), cost.size(2), iterations, epsilon};
}

}  // namespace

Tensor transport_plan_cpu(Tensor cost, double epsilon, int64_t iterations) {
  const Transport p = problem(cost, "cost", epsilon, iterations);
  const Tensor plan = torch::stable::empty_like(cost);
  in_type(is_double(cost, "cost"), [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().transport_plan(p, contiguous_data<T>(cost, "cost"), plan.mutable_data_ptr<T>());
  });
  return plan;
}

Tensor transport_plan_gradient_cpu(Tensor grad, Tensor plan, double epsilon, int64_t iterations) {
  const Transport p = problem(plan, "plan", epsilon, iterations);
  check_shape(grad, "grad", {p.images, p.rows, p.columns});
  check_type(grad, "grad", plan.scalar_type());
  const Tensor to = torch::stable::empty_like(plan);
  in_type(is_double(plan, "plan"), [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().transport_plan_gradient(
        p, contiguous_data<T>(grad, "grad"), contiguous_data<T>(plan, "plan"), to.mutable_data_ptr<T>());
  });
  return to;
}

}  // namespace fastsketch
