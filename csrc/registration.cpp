// torch.ops.fastsketch_C: the kernels behind fastsketch/cpp.py, against the libtorch stable ABI, so that one binary
// serves torch 2.10 and later. The public operators, with fake, autograd and autocast rules, are in fastsketch/ops.
#include <torch/csrc/stable/library.h>

#include "cpu/ops.h"

STABLE_TORCH_LIBRARY(fastsketch_C, m) {
  m.def(
      "patch_nce_forward(Tensor query, Tensor key, Tensor? region, float temperature, int negatives, bool normalize, "
      "bool with_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "patch_nce_backward(Tensor grad_loss, Tensor query, Tensor key, Tensor? region, Tensor lse, Tensor query_scale, "
      "Tensor key_scale, float temperature, int negatives, bool normalize, bool need_query, bool need_key) "
      "-> (Tensor, Tensor)");
  m.def("gather_layers(Tensor[] features, Tensor[] index) -> Tensor[]");
  m.def("scatter_patches(Tensor(a!) features, Tensor patches, Tensor index) -> ()");
  m.def("project_patches_forward(Tensor[] patches, Tensor[] parameters, bool keep_hidden) -> (Tensor, Tensor)");
  m.def(
      "project_patches_backward(Tensor grad_output, Tensor[] patches, Tensor hidden, Tensor[] parameters, "
      "bool need_patches, bool need_parameters) -> Tensor[]");
  m.def(
      "place_positions(Tensor index, int[] grid, int[] sizes, int[] borders, Tensor uniform) -> Tensor[]");
  m.def(
      "sample_patches(Tensor density, Tensor? region, Tensor uniform, int num_patches, float threshold, float boost) "
      "-> Tensor");
  m.def("attention_statistics_forward(Tensor query, Tensor key, float scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "attention_statistics_backward(Tensor grad_received, Tensor grad_entropy, Tensor query, Tensor key, "
      "Tensor entropy, Tensor lse, float scale) -> (Tensor, Tensor)");
  m.def("normalize_layers(Tensor x) -> Tensor[]");
  m.def("normalize_layers_gradient(Tensor[] grads, Tensor x) -> Tensor");
  m.def("transport_plan(Tensor cost, float epsilon, int iterations) -> (Tensor, Tensor, Tensor)");
  m.def("transport_plan_gradient(Tensor grad, Tensor plan, Tensor rows, Tensor columns, float epsilon) -> Tensor");
  m.def("relation_weight(Tensor key, float gamma) -> Tensor");
  m.def("semantic_relation(Tensor query, Tensor key, float gamma) -> (Tensor, Tensor, Tensor)");
  m.def(
      "weighted_nce(Tensor query, Tensor key, Tensor? weight, float temperature, bool decoupled) -> (Tensor, Tensor)");
  m.def("attend_forward(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor, Tensor)");
  m.def(
      "attend_backward(Tensor grad_output, Tensor output, Tensor lse, Tensor query, Tensor key, Tensor value, "
      "float scale) -> (Tensor, Tensor, Tensor)");
  m.def("attend_rows_forward(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor, Tensor)");
  m.def(
      "attend_rows_backward(Tensor grad_output, Tensor output, Tensor lse, Tensor query, Tensor key, Tensor value, "
      "float scale) -> (Tensor, Tensor, Tensor)");
  m.def("blur_downsample(Tensor input) -> Tensor");
  m.def("blur_downsample_gradient(Tensor grad_output, int height, int width) -> Tensor");
  m.def("blur_upsample(Tensor input) -> Tensor");
  m.def("blur_upsample_gradient(Tensor grad_output) -> Tensor");
  m.def("instance_norm(Tensor input, float slope, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "instance_norm_gradient(Tensor grad_output, Tensor input, Tensor mean, Tensor scale, float slope) -> Tensor");
  m.def("feature_distance(Tensor features, Tensor target, float epsilon) -> Tensor");
  m.def("feature_distance_gradient(Tensor grad_loss, Tensor features, Tensor target, float epsilon) -> Tensor");
  m.def("max_pool(Tensor input) -> Tensor");
  m.def("max_pool_gradient(Tensor grad_output, Tensor input) -> Tensor");
  m.def("convolve(Tensor input, Tensor kernel, Tensor? bias, int padding, bool reflect) -> Tensor");
  m.def(
      "convolve_input_gradient(Tensor grad_output, Tensor kernel, int height, int width, int padding, bool reflect) "
      "-> Tensor");
  m.def("convolve_kernel_gradient(Tensor input, Tensor grad_output, int size, int padding, bool reflect) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastsketch_C, CPU, m) {
  m.impl("patch_nce_forward", TORCH_BOX(&fastsketch::patch_nce_forward_cpu));
  m.impl("patch_nce_backward", TORCH_BOX(&fastsketch::patch_nce_backward_cpu));
  m.impl("gather_layers", TORCH_BOX(&fastsketch::gather_layers_cpu));
  m.impl("scatter_patches", TORCH_BOX(&fastsketch::scatter_patches_cpu));
  m.impl("project_patches_forward", TORCH_BOX(&fastsketch::project_patches_forward_cpu));
  m.impl("project_patches_backward", TORCH_BOX(&fastsketch::project_patches_backward_cpu));
  m.impl("place_positions", TORCH_BOX(&fastsketch::place_positions_cpu));
  m.impl("sample_patches", TORCH_BOX(&fastsketch::sample_patches_cpu));
  m.impl("attention_statistics_forward", TORCH_BOX(&fastsketch::attention_statistics_forward_cpu));
  m.impl("attention_statistics_backward", TORCH_BOX(&fastsketch::attention_statistics_backward_cpu));
  m.impl("normalize_layers", TORCH_BOX(&fastsketch::normalize_layers_cpu));
  m.impl("normalize_layers_gradient", TORCH_BOX(&fastsketch::normalize_layers_gradient_cpu));
  m.impl("transport_plan", TORCH_BOX(&fastsketch::transport_plan_cpu));
  m.impl("transport_plan_gradient", TORCH_BOX(&fastsketch::transport_plan_gradient_cpu));
  m.impl("relation_weight", TORCH_BOX(&fastsketch::relation_weight_cpu));
  m.impl("semantic_relation", TORCH_BOX(&fastsketch::semantic_relation_cpu));
  m.impl("weighted_nce", TORCH_BOX(&fastsketch::weighted_nce_cpu));
  m.impl("attend_forward", TORCH_BOX(&fastsketch::attend_forward_cpu));
  m.impl("attend_backward", TORCH_BOX(&fastsketch::attend_backward_cpu));
  m.impl("attend_rows_forward", TORCH_BOX(&fastsketch::attend_rows_forward_cpu));
  m.impl("attend_rows_backward", TORCH_BOX(&fastsketch::attend_rows_backward_cpu));
  m.impl("blur_downsample", TORCH_BOX(&fastsketch::blur_downsample_cpu));
  m.impl("blur_downsample_gradient", TORCH_BOX(&fastsketch::blur_downsample_gradient_cpu));
  m.impl("blur_upsample", TORCH_BOX(&fastsketch::blur_upsample_cpu));
  m.impl("blur_upsample_gradient", TORCH_BOX(&fastsketch::blur_upsample_gradient_cpu));
  m.impl("instance_norm", TORCH_BOX(&fastsketch::instance_norm_cpu));
  m.impl("instance_norm_gradient", TORCH_BOX(&fastsketch::instance_norm_gradient_cpu));
  m.impl("feature_distance", TORCH_BOX(&fastsketch::feature_distance_cpu));
  m.impl("feature_distance_gradient", TORCH_BOX(&fastsketch::feature_distance_gradient_cpu));
  m.impl("max_pool", TORCH_BOX(&fastsketch::max_pool_cpu));
  m.impl("max_pool_gradient", TORCH_BOX(&fastsketch::max_pool_gradient_cpu));
  m.impl("convolve", TORCH_BOX(&fastsketch::convolve_cpu));
  m.impl("convolve_input_gradient", TORCH_BOX(&fastsketch::convolve_input_gradient_cpu));
  m.impl("convolve_kernel_gradient", TORCH_BOX(&fastsketch::convolve_kernel_gradient_cpu));
}
