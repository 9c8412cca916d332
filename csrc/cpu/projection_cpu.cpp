// project_patches on CPU tensors: checks, outputs, and the kernel of the dtype.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

constexpr size_t PARAMETERS = 4;  // of a layer: weight and bias of the first and of the second product

int64_t rows_of(const Tensor& patches) { return patches.size(0) * patches.size(1); }

template <typename T>
Projection<T> problem(const std::vector<Tensor>& patches, const std::vector<Tensor>& parameters) {
  Projection<T> p{};
  p.rows = rows_of(patches[0]);
  p.hidden = parameters[0].size(0);
  p.out = parameters[2].size(0);
  for (size_t n = 0; n < patches.size(); ++n) {
    const Tensor* w = &parameters[PARAMETERS * n];
    const int64_t width = patches[n].size(2);
    check_shape(patches[n], "patches", {patches[0].size(0), patches[0].size(1), width});
    check_shape(w[0], "first weight", {p.hidden, width});
    check_shape(w[1], "first bias", {p.hidden});
    check_shape(w[2], "second weight", {p.out, p.hidden});
    check_shape(w[3], "second bias", {p.out});
    for (size_t i = 0; i < PARAMETERS; ++i) check_type(w[i], "parameters", patches[0].scalar_type());
    check_type(patches[n], "patches", patches[0].scalar_type());
    p.layers.push_back(
        {contiguous_data<T>(patches[n], "patches"), width, contiguous_data<T>(w[0], "first weight"),
         contiguous_data<T>(w[1], "first bias"), contiguous_data<T>(w[2], "second weight"),
         contiguous_data<T>(w[3], "second bias")});
  }
  return p;
}

void check(const std::vector<Tensor>& patches, const std::vector<Tensor>& parameters) {
  STD_TORCH_CHECK(!patches.empty(), "patches must hold a tensor");
  STD_TORCH_CHECK(
      parameters.size() == PARAMETERS * patches.size(), "parameters must hold four tensors a layer, got ",
      parameters.size(), " for ", patches.size());
  STD_TORCH_CHECK(patches[0].dim() == 3, "patches must have 3 dimensions, got ", patches[0].dim());
  STD_TORCH_CHECK(parameters[0].dim() == 2 && parameters[2].dim() == 2, "weights must have 2 dimensions");
}

template <typename T>
void forward(
    const std::vector<Tensor>& patches, const std::vector<Tensor>& parameters, const Tensor& output,
    const Tensor& hidden) {
  Projection<T> p = problem<T>(patches, parameters);
  p.output = output.mutable_data_ptr<T>();
  p.hidden_values = hidden.numel() ? hidden.mutable_data_ptr<T>() : nullptr;
  if (p.rows) kernels().of<T>().project_forward(p);
}

template <typename T>
void backward(
    const Tensor& grad_output, const std::vector<Tensor>& patches, const Tensor& hidden,
    const std::vector<Tensor>& parameters, const std::vector<Tensor>& grads, bool need_patches, bool need_parameters) {
  Projection<T> p = problem<T>(patches, parameters);
  const int64_t layers = int64_t(patches.size());
  check_shape(grad_output, "grad_output", {layers, patches[0].size(0), patches[0].size(1), p.out});
  check_shape(hidden, "hidden", {layers, p.rows, p.hidden});
  p.hidden_values = const_cast<T*>(contiguous_data<T>(hidden, "hidden"));
  ProjectionGradients<T> to{contiguous_data<T>(grad_output, "grad_output"), {}, {}};
  size_t next = 0;
  for (size_t n = 0; n < patches.size(); ++n)
    to.patches.push_back(need_patches ? grads[next++].mutable_data_ptr<T>() : nullptr);
  while (need_parameters && next < grads.size()) to.weights.push_back(grads[next++].mutable_data_ptr<T>());
  kernels().of<T>().project_backward(p, to);
}

}  // namespace

std::tuple<Tensor, Tensor> project_patches_forward_cpu(
    std::vector<Tensor> patches, std::vector<Tensor> parameters, bool keep_hidden) {
  check(patches, parameters);
  const bool in_double = is_double(patches[0], "patches");
  const Tensor& like = patches[0];
  const int64_t layers = int64_t(patches.size()), hidden_width = parameters[0].size(0);
  const Tensor output = torch::stable::new_empty(
      like, std::vector<int64_t>{layers, like.size(0), like.size(1), parameters[2].size(0)});
  const Tensor hidden = torch::stable::new_empty(
      like, keep_hidden ? std::vector<int64_t>{layers, rows_of(like), hidden_width} : std::vector<int64_t>{0});
  in_type(in_double, [&](auto zero) { forward<decltype(zero)>(patches, parameters, output, hidden); });
  return {output, hidden};
}

std::vector<Tensor> project_patches_backward_cpu(
    Tensor grad_output, std::vector<Tensor> patches, Tensor hidden, std::vector<Tensor> parameters, bool need_patches,
    bool need_parameters) {
  check(patches, parameters);
  const bool in_double = is_double(patches[0], "patches");
  std::vector<Tensor> grads;
  const auto like = [&](const std::vector<Tensor>& tensors) {
    for (const Tensor& tensor : tensors) grads.push_back(torch::stable::empty_like(tensor));
  };
  if (need_patches) like(patches);
  if (need_parameters) like(parameters);
  in_type(in_double, [&](auto zero) {
    backward<decltype(zero)>(grad_output, patches, hidden, parameters, grads, need_patches, need_parameters);
  });
  return grads;
}

}  // namespace fastsketch
