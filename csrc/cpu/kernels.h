// What the CPU kernels take: plain pointers and strides, so that the same source can be compiled for several
// instruction sets and nothing of torch enters it but its number types. Shapes and dtypes were checked by the callers
// (<op>_cpu.cpp).
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>
#include <vector>

#include "dispatch.h"

namespace fastsketch {

using c10::BFloat16;
using c10::Half;

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

template <typename T, typename Sum = T>
struct AttendGradients {
  const T* output;      // [B, channels, N], the arriving gradient
  const Sum* attended;  // [B, channels, N], the forward's result
  const Sum* lse;       // [B, N]
  T* query;             // of the inputs' shapes
  T* key;
  T* value;
};

// The same with positions for rows, [B, N, width] and so on, in bfloat16. The result is float32: the gradient takes
// differences from it.
using AttendRows = AttendInputs<BFloat16>;
using AttendRowsGradients = AttendGradients<BFloat16, float>;

// Maps of `size` values each, [B, channels, size] or, channels-last, [B, size, channels]: normalised, and what is below
// 0 times a slope; or, with `grad`, the gradient.
struct InstanceNorm {
  int64_t images, channels, size;
  bool channels_last;
  Dtype dtype;  // of x, grad and out
  double slope, eps;
  const void* x;
  const void* grad = nullptr;
  void* out;
  void* mean;   // [B, channels], as `scale` in the accumulation type; written forward, read backward
  void* scale;  // 1 / standard deviation
};

// A blur of contiguous maps [height, width, channels] to half or to double the size, or its gradient.
struct Blur {
  enum Kind { down, down_gradient, up, up_gradient } kind;
  int64_t height, width;  // before the blur
  int64_t maps = 0;
  int64_t channels = 1;  // more: of channels-last maps
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

// Features [B, channels, positions], contiguous or channels-last, to be divided by (their length at a position +
// epsilon): the distance of the two, or, with `grad`, its gradient to the first.
struct FeatureMaps {
  int64_t images, channels, positions;
  bool channels_last;
  Dtype dtype;  // of the features and the gradient
  double epsilon;
  const void* features;
  const void* target;
  const void* grad = nullptr;  // [B] in the accumulation type, as the distance
  void* out = nullptr;
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

// The kernels that compute in T.
template <typename T>
struct Typed {
  void (*patch_nce_forward)(const PatchNce&, const PatchNceForward<T>&);
  void (*patch_nce_backward)(const PatchNce&, const PatchNceBackward<T>&);
  void (*attention_forward)(const Attention&, const AttentionForward<T>&);
  void (*attention_backward)(const Attention&, const AttentionBackward<T>&);
  void (*project_forward)(const Projection<T>&);
  void (*project_backward)(const Projection<T>&, const ProjectionGradients<T>&);
  void (*convolve)(const ConvShape&, const T* input, const T* kernel, const T* bias, T* output);
  void (*convolve_input_gradient)(const ConvShape&, const T* grad, const T* kernel, T* grad_input);
  void (*convolve_kernel_gradient)(const ConvShape&, const T* input, const T* grad, T* grad_kernel);
  void (*normalize_layers)(const T* x, int64_t rows, int64_t width, const std::vector<T*>& layers);
  void (*normalize_layers_gradient)(
      const std::vector<const T*>& grads, const T* x, int64_t rows, int64_t width, T* grad_x);
  void (*transport_plan)(const Transport&, const T* cost, T* plan, T* rows, T* columns);
  void (*transport_plan_gradient)(
      const Transport&, const T* grad, const T* plan, const T* rows, const T* columns, T* grad_cost);
  void (*relation_weight)(const Rows&, const T* key, double gamma, T* weight);
  void (*semantic_relation)(const Rows&, const RelationInputs<T>&, const RelationOutputs<T>&);
  void (*weighted_nce)(
      const Rows&, const T* query, const T* key, const T* weight, double temperature, bool decoupled, T* loss,
      T* gradient);
  void (*attend_forward)(const Attend&, const AttendInputs<T>&, T* output, T* lse);
  void (*attend_backward)(const Attend&, const AttendInputs<T>&, const AttendGradients<T>&);
};

// One instruction set's kernels.
struct Kernels {
  const char* name;
  Typed<float> f32;
  Typed<double> f64;
  void (*blur)(const Blur&, const void* from, void* to);
  void (*feature_distance)(const FeatureMaps&);
  void (*instance_norm)(const InstanceNorm&);
  void (*max_pool)(const MaxPool&);
  void (*gather)(const Features*, const Patches*, int64_t layers);  // patches = features at index, of each layer
  void (*scatter)(const Features&, const Patches&); // features += patches at index

  template <typename T>
  const Typed<T>& of() const {
    if constexpr (std::is_same_v<T, double>)
      return f64;
    else
      return f32;
  }
};

// Those that AMX brings; null pointers where it is not in use.
struct TileKernels {
  void (*attend_rows_forward)(const Attend&, const AttendRows&, float* output, float* lse);
  void (*attend_rows_backward)(const Attend&, const AttendRows&, const AttendRowsGradients&);
};

namespace baseline {
extern const Kernels kernels;
}
#ifdef FASTSKETCH_X86_LEVELS
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif
#ifdef FASTSKETCH_AMX
namespace amx {
extern const TileKernels kernels;
}
#endif

// The kernels for this processor (or of FASTSKETCH_CPU_LEVEL), chosen at the first call.
const Kernels& kernels();
const TileKernels& tile_kernels();

// Not vectorised, hence built once. `log_in_place` replaces doubles by their logarithms.
void sample_patches(const Sampling&, void (*log_in_place)(double* values, int64_t count));

}  // namespace fastsketch
