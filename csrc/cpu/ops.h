// The operators of torch.ops.fastsketch_C on CPU tensors; schemas in registration.cpp, meanings in fastsketch/reference.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace fastsketch {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> patch_nce_forward_cpu(
    Tensor query, Tensor key, std::optional<Tensor> region, double temperature, int64_t negatives, bool normalize,
    bool with_gradient);
std::tuple<Tensor, Tensor> patch_nce_backward_cpu(
    Tensor grad_loss, Tensor query, Tensor key, std::optional<Tensor> region, Tensor lse, Tensor query_scale,
    Tensor key_scale, double temperature, int64_t negatives, bool normalize, bool need_query, bool need_key);
std::vector<Tensor> gather_layers_cpu(std::vector<Tensor> features, std::vector<Tensor> index);
void scatter_patches_cpu(Tensor features, Tensor patches, Tensor index);
std::tuple<Tensor, Tensor> project_patches_forward_cpu(
    std::vector<Tensor> patches, std::vector<Tensor> parameters, bool keep_hidden);
std::vector<Tensor> project_patches_backward_cpu(
    Tensor grad_output, std::vector<Tensor> patches, Tensor hidden, std::vector<Tensor> parameters, bool need_patches,
    bool need_parameters);
std::vector<Tensor> place_positions_cpu(
    Tensor index, std::vector<int64_t> grid, std::vector<int64_t> sizes, std::vector<int64_t> borders, Tensor uniform);
Tensor sample_patches_cpu(
    Tensor density, std::optional<Tensor> region, Tensor uniform, int64_t num_patches, double threshold, double boost);
std::tuple<Tensor, Tensor, Tensor> attention_statistics_forward_cpu(Tensor query, Tensor key, double scale);
std::tuple<Tensor, Tensor> attention_statistics_backward_cpu(
    Tensor grad_received, Tensor grad_entropy, Tensor query, Tensor key, Tensor entropy, Tensor lse, double scale);
std::vector<Tensor> normalize_layers_cpu(Tensor x);
Tensor normalize_layers_gradient_cpu(std::vector<Tensor> grads, Tensor x);
std::tuple<Tensor, Tensor, Tensor> transport_plan_cpu(Tensor cost, double epsilon, int64_t iterations);
Tensor transport_plan_gradient_cpu(Tensor grad, Tensor plan, Tensor rows, Tensor columns, double epsilon);
Tensor relation_weight_cpu(Tensor key, double gamma);
std::tuple<Tensor, Tensor, Tensor> semantic_relation_cpu(Tensor query, Tensor key, double gamma);
std::tuple<Tensor, Tensor> weighted_nce_cpu(
    Tensor query, Tensor key, std::optional<Tensor> weight, double temperature, bool decoupled);
std::tuple<Tensor, Tensor> attend_forward_cpu(Tensor query, Tensor key, Tensor value, double scale);
std::tuple<Tensor, Tensor, Tensor> attend_backward_cpu(
    Tensor grad_output, Tensor output, Tensor lse, Tensor query, Tensor key, Tensor value, double scale);
std::tuple<Tensor, Tensor> attend_rows_forward_cpu(Tensor query, Tensor key, Tensor value, double scale);
std::tuple<Tensor, Tensor, Tensor> attend_rows_backward_cpu(
    Tensor grad_output, Tensor output, Tensor lse, Tensor query, Tensor key, Tensor value, double scale);
Tensor blur_downsample_cpu(Tensor input);
Tensor blur_downsample_gradient_cpu(Tensor grad_output, int64_t height, int64_t width);
Tensor blur_upsample_cpu(Tensor input);
Tensor blur_upsample_gradient_cpu(Tensor grad_output);
std::tuple<Tensor, Tensor, Tensor> instance_norm_cpu(Tensor input, double slope, double eps);
Tensor instance_norm_gradient_cpu(Tensor grad_output, Tensor input, Tensor mean, Tensor scale, double slope);
Tensor feature_distance_cpu(Tensor features, Tensor target, double epsilon);
Tensor feature_distance_gradient_cpu(Tensor grad_loss, Tensor features, Tensor target, double epsilon);
Tensor max_pool_cpu(Tensor input);
Tensor max_pool_gradient_cpu(Tensor grad_output, Tensor input);
Tensor convolve_cpu(Tensor input, Tensor kernel, std::optional<Tensor> bias, int64_t padding, bool reflect);
Tensor convolve_input_gradient_cpu(
    Tensor grad_output, Tensor kernel, int64_t height, int64_t width, int64_t padding, bool reflect);
Tensor convolve_kernel_gradient_cpu(
    Tensor input, Tensor grad_output, int64_t size, int64_t padding, bool reflect);

}  // namespace fastsketch
