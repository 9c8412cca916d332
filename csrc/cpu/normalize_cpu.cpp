// normalize_layers on CPU tensors: checks, outputs, and the kernel of the dtype.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

template <typename T>
void forward(
    const Tensor& x, const std::vector<Tensor>& layers,
    void (*kernel)(const T*, int64_t, int64_t, const std::vector<T*>&)) {
  std::vector<T*> to;
  for (const Tensor& layer : layers) to.push_back(layer.mutable_data_ptr<T>());
  if (x.numel()) kernel(contiguous_data<T>(x, "x"), x.size(1), x.size(2), to);
}

template <typename T>
void backward(
    const std::vector<Tensor>& grads, const Tensor& x, const Tensor& grad_x,
    void (*kernel)(const std::vector<const T*>&, const T*, int64_t, int64_t, T*)) {
  std::vector<const T*> from;
  for (const Tensor& grad : grads) {
    check_shape(grad, "grads", {x.size(1), x.size(2)});
    check_type(grad, "grads", x.scalar_type());
    from.push_back(contiguous_data<T>(grad, "grads"));
  }
  if (x.numel()) kernel(from, contiguous_data<T>(x, "x"), x.size(1), x.size(2), grad_x.mutable_data_ptr<T>());
}

}  // namespace

std::vector<Tensor> normalize_layers_cpu(Tensor x) {
  STD_TORCH_CHECK(x.dim() == 3, "x must have 3 dimensions, got ", x.dim());
  const bool in_double = is_double(x, "x");
  std::vector<Tensor> layers;
  for (int64_t n = 0; n < x.size(0); ++n)
    layers.push_back(torch::stable::new_empty(x, std::vector<int64_t>{x.size(1), x.size(2)}));
  if (in_double)
    forward<double>(x, layers, kernels().normalize_layers_f64);
  else
    forward<float>(x, layers, kernels().normalize_layers_f32);
  return layers;
}

Tensor normalize_layers_gradient_cpu(std::vector<Tensor> grads, Tensor x) {
  STD_TORCH_CHECK(x.dim() == 3, "x must have 3 dimensions, got ", x.dim());
  const bool in_double = is_double(x, "x");
  STD_TORCH_CHECK(
      int64_t(grads.size()) == x.size(0), "grads must hold ", x.size(0), " tensors, got ", grads.size());
  const Tensor grad_x = torch::stable::empty_like(x);
  if (in_double)
    backward<double>(grads, x, grad_x, kernels().normalize_layers_gradient_f64);
  else
    backward<float>(grads, x, grad_x, kernels().normalize_layers_gradient_f32);
  return grad_x;
}

}  // namespace fastsketch
