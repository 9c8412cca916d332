// normalize_layers on CPU tensors: checks, outputs, and the kernel of the dtype.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

template <typename T>
void forward(const Tensor& x, const std::vector<Tensor>& layers) {
  std::vector<T*> to;
  for (const Tensor& layer : layers) to.push_back(layer.mutable_data_ptr<T>());
  if (x.numel()) kernels().of<T>().normalize_layers(contiguous_data<T>(x, "x"), x.size(1), x.size(2), to);
}

template <typename T>
void backward(const std::vector<Tensor>& grads, const Tensor& x, const Tensor& grad_x) {
  std::vector<const T*> from;
  for (const Tensor& grad : grads) {
    check_shape(grad, "grads", {x.size(1), x.size(2)});
    check_type(grad, "grads", x.scalar_type());
    from.push_back(contiguous_data<T>(grad, "grads"));
  }
  if (x.numel())
    kernels().of<T>().normalize_layers_gradient(
        from, contiguous_data<T>(x, "x"), x.size(1), x.size(2), grad_x.mutable_data_ptr<T>());
}

}  // namespace

std::vector<Tensor> normalize_layers_cpu(Tensor x) {
  STD_TORCH_CHECK(x.dim() == 3, "x must have 3 dimensions, got ", x.dim());
  const bool in_double = is_double(x, "x");
  std::vector<Tensor> layers;
  for (int64_t n = 0; n < x.size(0); ++n)
    layers.push_back(torch::stable::new_empty(x, std::vector<int64_t>{x.size(1), x.size(2)}));
  in_type(in_double, [&](auto zero) { forward<decltype(zero)>(x, layers); });
  return layers;
}

Tensor normalize_layers_gradient_cpu(std::vector<Tensor> grads, Tensor x) {
  STD_TORCH_CHECK(x.dim() == 3, "x must have 3 dimensions, got ", x.dim());
  const bool in_double = is_double(x, "x");
  STD_TORCH_CHECK(
      int64_t(grads.size()) == x.size(0), "grads must hold ", x.size(0), " tensors, got ", grads.size());
  const Tensor grad_x = torch::stable::empty_like(x);
  in_type(in_double, [&](auto zero) { backward<decltype(zero)>(grads, x, grad_x); });
  return grad_x;
}

}  // namespace fastsketch
