// What the CPU kernels take: plain pointers and strides, so that the same source can be compiled for several
// instruction sets and nothing of torch enters it. Shapes and dtypes were checked by the callers (<op>_cpu.cpp).
#pragma once

#include <cstdint>
#include <vector>

namespace fastsketch {

enum class Dtype { f32, f64, bf16, f16 };

// A read-only tensor of up to three dimensions; strides in elements.
struct View {
  const void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t stride[3] = {0, 0, 0};
};

enum class Negatives { image, same_region, other_regions };

struct PatchNce {
  int64_t images, samples, width;
  View query, key;        // [B, S, D]
  const int32_t* region;  // [B, S] contiguous, or null
  Negatives negatives;
  double temperature;
  bool normalize;
};

// Outputs are contiguous [B, S] (unit_gradient [B, S, D]) in the accumulation type T.
template <typename T>
struct PatchNceForward {
  T* loss;
  T* lse;
  T* query_scale;    // null without normalize
  T* key_scale;      // null without normalize
  T* unit_gradient;  // null where not wanted: d loss_i / d query_i
};

template <typename T>
struct PatchNceBackward {
  const T* grad_loss;    // [B, S] contiguous
  const T* lse;          // [B, S]
  const T* query_scale;  // [B, S], or null
  const T* key_scale;    // [B, S], or null
  T* grad_query;         // [B, S, D] contiguous, or null where not wanted
  T* grad_key;           // [B, S, D] contiguous, or null where not wanted
};

// Features [B, C, *spatial] of any strides; bytes are moved, or values of `dtype` added.
struct Features {
  void* data;
  Dtype dtype;
  int64_t images, channels;
  int64_t rank;  // of the spatial grid, 1 to 3
  int64_t spatial[3];
  int64_t image_stride, channel_stride;
  int64_t spatial_stride[3];
};

struct Patches {
  void* data;             // [B, S, C], of the features' dtype
  const int64_t* index;   // [B, S] of any strides, in range
  int64_t index_stride[2];
  int64_t samples;
  int64_t stride[3];
};

struct Sampling {
  int64_t images, positions, samples;
  const void* density;   // [B, N] contiguous
  bool density_double;   // else float
  const void* uniform;   // [B, N] contiguous
  bool uniform_double;   // else float
  const int64_t* region; // [B, N] contiguous, or null
  double threshold, boost;
  int64_t* index;        // [B, S]
};

struct Attention {
  int64_t images, rows, columns, width;
  View query;  // [B, N, d]
  View key;    // [B, M, d]
  double scale;
};

template <typename T>
struct AttentionForward {
  T* received;  // [B, M]
  T* entropy;   // [B, N]
  T* lse;       // [B, N]
};

template <typename T>
struct AttentionBackward {
  const T* grad_received;  // [B, M] contiguous
  const T* grad_entropy;   // [B, N] contiguous
  const T* entropy;
  const T* lse;
  T* grad_query;  // [B, N, d]
  T* grad_key;    // [B, M, d]
};

// relu(patches W1ᵀ + b1) W2ᵀ + b2; everything contiguous.
template <typename T>
struct ProjectionLayer {
  const T* patches;  // [rows, width]
  int64_t width;
  const T* weight1;  // [hidden, width]
  const T* bias1;    // [hidden]
  const T* weight2;  // [out, hidden]
  const T* bias2;    // [out]
};

template <typename T>
struct Projection {
  int64_t rows, hidden, out;
  std::vector<ProjectionLayer<T>> layers;
  T* output;         // [L, rows, out]; not used by the backward
  T* hidden_values;  // [L, rows, hidden], behind the relu; null where they need not be kept
};

template <typename T>
struct ProjectionGradients {
  const T* output;           // [L, rows, out], the arriving gradient
  std::vector<T*> patches;   // of each layer [rows, width], or null where not wanted
  std::vector<T*> weights;   // of weight1, bias1, weight2, bias2 of each layer, or empty where not wanted
};

// A convolution of stride 1, everything contiguous: input [B, channels, H, W], kernel [filters, channels, size, size].
struct ConvShape {
  int64_t images, channels, height, width, filters;
  int64_t size;     // 3, 4 or 7
  int64_t padding;  // on each side of the input
  bool reflect;     // padding by reflection, without the border itself; else by zeros
  int64_t out_height() const { return height + 2 * padding + 1 - size; }
  int64_t out_width() const { return width + 2 * padding + 1 - size; }
};

// softmax(queryᵀ key · scale) over the keys, applied to values; channels first, everything contiguous.
struct Attend {
  int64_t images, queries, keys, width, channels;
  double scale;
};

template <typename T>
struct AttendInputs {
  const T* query;  // [B, width, N]
  const T* key;    // [B, width, M]
  const T* value;  // [B, channels, M]
};

template <typename T>
struct AttendGradients {
  const T* output;    // [B, channels, N], the arriving gradient
  const T* attended;  // [B, channels, N], the forward's result
  const T* lse;       // [B, N]
  T* query;           // of the inputs' shapes
  T* key;
  T* value;
};

// Maps of `size` values each, contiguous: normalised, and what is below 0 times a slope; or, with `grad`, the gradient.
struct InstanceNorm {
  int64_t maps, size;
  Dtype dtype;  // of x, grad and out
  double slope, eps;
  const void* x;
  const void* grad = nullptr;
  void* out;
  void* mean;   // [maps], as `scale` in the accumulation type; written forward, read backward
  void* scale;  // 1 / standard deviation
};

// A blur of contiguous maps [height, width] to half or to double the size, or its gradient.
struct Blur {
  enum Kind { down, down_gradient, up, up_gradient } kind;
  int64_t height, width;
  int64_t maps = 0;
  Dtype dtype = Dtype::f32;  // of both sides
};

// Maps halved by the largest of each 2x2 square; or, with `grad`, the gradient. Everything contiguous.
struct MaxPool {
  int64_t maps, height, width;
  Dtype dtype;  // of all
  const void* x;
  const void* grad = nullptr;
  void* out = nullptr;
};

// Features [B, channels, positions], contiguous, to be divided by (their length at a position + epsilon).
struct FeatureMaps {
  int64_t images, channels, positions;
  double epsilon;
};

// Transport between the rows and columns of each image's cost [rows, columns]; everything contiguous.
struct Transport {
  int64_t images, rows, columns, iterations;
  double epsilon;
  int64_t work() const { return images * rows * columns * iterations; }
};

// Rows of each image, contiguous.
struct Rows {
  int64_t images, samples, width;
};

template <typename T>
struct RelationInputs {
  const T* query;  // [B, S, D], not normalised
  const T* key;    // like it
  double gamma;
};

template <typename T>
struct RelationOutputs {
  T* loss;      // [B, S], of each row
  T* gradient;  // [B, S, D], of the losses' sum to the query
  T* weight;    // [B, S, S]
  T* room;      // [B, S, S], for intermediate values
};

// One instruction set's kernels.
struct Kernels {
  const char* name;
  void (*patch_nce_forward_f32)(const PatchNce&, const PatchNceForward<float>&);
  void (*patch_nce_forward_f64)(const PatchNce&, const PatchNceForward<double>&);
  void (*patch_nce_backward_f32)(const PatchNce&, const PatchNceBackward<float>&);
  void (*patch_nce_backward_f64)(const PatchNce&, const PatchNceBackward<double>&);
  void (*attention_forward_f32)(const Attention&, const AttentionForward<float>&);
  void (*attention_forward_f64)(const Attention&, const AttentionForward<double>&);
  void (*attention_backward_f32)(const Attention&, const AttentionBackward<float>&);
  void (*attention_backward_f64)(const Attention&, const AttentionBackward<double>&);
  void (*project_forward_f32)(const Projection<float>&);
  void (*project_forward_f64)(const Projection<double>&);
  void (*project_backward_f32)(const Projection<float>&, const ProjectionGradients<float>&);
  void (*project_backward_f64)(const Projection<double>&, const ProjectionGradients<double>&);
  void (*convolve_f32)(const ConvShape&, const float* input, const float* kernel, const float* bias, float* output);
  void (*convolve_f64)(const ConvShape&, const double* input, const double* kernel, const double* bias, double* output);
  void (*convolve_input_gradient_f32)(const ConvShape&, const float* grad, const float* kernel, float* grad_input);
  void (*convolve_input_gradient_f64)(const ConvShape&, const double* grad, const double* kernel, double* grad_input);
  void (*convolve_kernel_gradient_f32)(const ConvShape&, const float* input, const float* grad, float* grad_kernel);
  void (*convolve_kernel_gradient_f64)(const ConvShape&, const double* input, const double* grad, double* grad_kernel);
  void (*normalize_layers_f32)(const float* x, int64_t rows, int64_t width, const std::vector<float*>& layers);
  void (*normalize_layers_f64)(const double* x, int64_t rows, int64_t width, const std::vector<double*>& layers);
  void (*normalize_layers_gradient_f32)(
      const std::vector<const float*>& grads, const float* x, int64_t rows, int64_t width, float* grad_x);
  void (*normalize_layers_gradient_f64)(
      const std::vector<const double*>& grads, const double* x, int64_t rows, int64_t width, double* grad_x);
  void (*transport_plan_f32)(const Transport&, const float* cost, float* plan);
  void (*transport_plan_f64)(const Transport&, const double* cost, double* plan);
  void (*transport_plan_gradient_f32)(const Transport&, const float* grad, const float* plan, float* grad_cost);
  void (*transport_plan_gradient_f64)(const Transport&, const double* grad, const double* plan, double* grad_cost);
  void (*relation_weight_f32)(const Rows&, const float* key, double gamma, float* weight);
  void (*relation_weight_f64)(const Rows&, const double* key, double gamma, double* weight);
  void (*semantic_relation_f32)(const Rows&, const RelationInputs<float>&, const RelationOutputs<float>&);
  void (*semantic_relation_f64)(const Rows&, const RelationInputs<double>&, const RelationOutputs<double>&);
  void (*weighted_nce_f32)(
      const Rows&, const float* query, const float* key, const float* weight, double temperature, bool decoupled,
      float* loss, float* gradient);
  void (*weighted_nce_f64)(
      const Rows&, const double* query, const double* key, const double* weight, double temperature, bool decoupled,
      double* loss, double* gradient);
  void (*attend_forward_f32)(const Attend&, const AttendInputs<float>&, float* output, float* lse);
  void (*attend_forward_f64)(const Attend&, const AttendInputs<double>&, double* output, double* lse);
  void (*attend_backward_f32)(const Attend&, const AttendInputs<float>&, const AttendGradients<float>&);
  void (*attend_backward_f64)(const Attend&, const AttendInputs<double>&, const AttendGradients<double>&);
  void (*feature_distance_f32)(const FeatureMaps&, const float* one, const float* other, float* loss);
  void (*feature_distance_f64)(const FeatureMaps&, const double* one, const double* other, double* loss);
  void (*feature_distance_gradient_f32)(
      const FeatureMaps&, const float* grad, const float* one, const float* other, float* grad_one);
  void (*feature_distance_gradient_f64)(
      const FeatureMaps&, const double* grad, const double* one, const double* other, double* grad_one);
  void (*blur)(const Blur&, const void* from, void* to);
  void (*instance_norm)(const InstanceNorm&);
  void (*max_pool)(const MaxPool&);
  void (*gather)(const Features*, const Patches*, int64_t layers);  // patches = features at index, of each layer
  void (*scatter)(const Features&, const Patches&); // features += patches at index
};

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FASTSKETCH_X86_LEVELS 1
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

// The kernels for this processor (or of FASTSKETCH_CPU_LEVEL), chosen at the first call.
const Kernels& kernels();

// Not vectorised, hence built once. `log_in_place` replaces doubles by their logarithms.
void sample_patches(const Sampling&, void (*log_in_place)(double* values, int64_t count));

}  // namespace fastsketch
