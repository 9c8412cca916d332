// transport_plan on CPU tensors: checks, outputs, and the kernel of the dtype.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {

std::tuple<Tensor, Tensor, Tensor> transport_plan_cpu(Tensor cost, double epsilon, int64_t iterations) {
  STD_TORCH_CHECK(cost.dim() == 3 && cost.numel(), "cost must have 3 dimensions and not be empty");
  STD_TORCH_CHECK(epsilon > 0 && iterations > 0, "epsilon and iterations must be positive");
  const Transport p{cost.size(0), cost.size(1), cost.size(2), iterations, epsilon};
  const Tensor plan = torch::stable::empty_like(cost);
  const Tensor rows = torch::stable::new_empty(cost, std::vector<int64_t>{p.images, iterations, p.rows});
  const Tensor columns = torch::stable::new_empty(cost, std::vector<int64_t>{p.images, iterations + 1, p.columns});
  in_type(is_double(cost, "cost"), [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().transport_plan(
        p, contiguous_data<T>(cost, "cost"), plan.mutable_data_ptr<T>(), rows.mutable_data_ptr<T>(),
        columns.mutable_data_ptr<T>());
  });
  return {plan, rows, columns};
}

Tensor transport_plan_gradient_cpu(Tensor grad, Tensor plan, Tensor rows, Tensor columns, double epsilon) {
  STD_TORCH_CHECK(plan.dim() == 3 && plan.numel(), "plan must have 3 dimensions and not be empty");
  STD_TORCH_CHECK(rows.dim() == 3 && rows.size(1) > 0, "rows must have 3 dimensions and not be empty");
  STD_TORCH_CHECK(epsilon > 0, "epsilon must be positive");
  const Transport p{plan.size(0), plan.size(1), plan.size(2), rows.size(1), epsilon};
  check_shape(grad, "grad", {p.images, p.rows, p.columns});
  check_shape(rows, "rows", {p.images, p.iterations, p.rows});
  check_shape(columns, "columns", {p.images, p.iterations + 1, p.columns});
  check_type(grad, "grad", plan.scalar_type());
  check_type(rows, "rows", plan.scalar_type());
  check_type(columns, "columns", plan.scalar_type());
  const Tensor to = torch::stable::empty_like(plan);
  in_type(is_double(plan, "plan"), [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().transport_plan_gradient(
        p, contiguous_data<T>(grad, "grad"), contiguous_data<T>(plan, "plan"), contiguous_data<T>(rows, "rows"),
        contiguous_data<T>(columns, "columns"), to.mutable_data_ptr<T>());
  });
  return to;
}

}  // namespace fastsketch
