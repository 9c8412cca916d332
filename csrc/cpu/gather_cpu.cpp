// gather_patches and tap_patches on CPU tensors.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

Features features_of(const Tensor& features) {
  STD_TORCH_CHECK(
      features.dim() >= 3 && features.dim() <= 5, "features must have 3 to 5 dimensions, got ", features.dim());
  Features f{};
  f.data = features.mutable_data_ptr();
  f.dtype = floating_dtype(features, "features");
  f.images = features.size(0);
  f.channels = features.size(1);
  f.image_stride = features.stride(0);
  f.channel_stride = features.stride(1);
  f.rank = features.dim() - 2;
  for (int64_t d = 0; d < f.rank; ++d) {
    f.spatial[d] = features.size(d + 2);
    f.spatial_stride[d] = features.stride(d + 2);
  }
  return f;
}

Patches patches_of(const Features& f, const Tensor& features, const Tensor& patches, const Tensor& index) {
  STD_TORCH_CHECK(index.dim() == 2, "index must have 2 dimensions, got ", index.dim());
  check_type(index, "index", ScalarType::Long);
  check_shape(index, "index", {f.images, index.size(1)});
  check_type(patches, "patches", features.scalar_type());
  check_shape(patches, "patches", {f.images, index.size(1), f.channels});
  Patches p{};
  p.data = patches.mutable_data_ptr();
  p.index = index.const_data_ptr<int64_t>();
  p.samples = index.size(1);
  for (int d = 0; d < 2; ++d) p.index_stride[d] = index.stride(d);
  for (int d = 0; d < 3; ++d) p.stride[d] = patches.stride(d);
  int64_t positions = 1;
  for (int64_t d = 0; d < f.rank; ++d) positions *= f.spatial[d];
  for (int64_t b = 0; b < f.images; ++b)
    for (int64_t s = 0; s < p.samples; ++s) {
      const int64_t at = p.index[b * p.index_stride[0] + s * p.index_stride[1]];
      STD_TORCH_CHECK(at >= 0 && at < positions, "index must lie in [0, ", positions, "), got ", at);
    }
  return p;
}

}  // namespace

std::vector<Tensor> gather_layers_cpu(std::vector<Tensor> features, std::vector<Tensor> index) {
  STD_TORCH_CHECK(
      features.size() == index.size(), "features and index must be as many, got ", features.size(), " and ",
      index.size());
  std::vector<Features> from;
  std::vector<Patches> to;
  std::vector<Tensor> patches;
  for (size_t n = 0; n < features.size(); ++n) {
    from.push_back(features_of(features[n]));
    STD_TORCH_CHECK(index[n].dim() == 2, "index must have 2 dimensions, got ", index[n].dim());
    const std::vector<int64_t> shape{from[n].images, index[n].size(1), from[n].channels};
    patches.push_back(torch::stable::new_empty(features[n], shape));
    to.push_back(patches_of(from[n], features[n], patches[n], index[n]));
  }
  if (!from.empty()) kernels().gather(from.data(), to.data(), int64_t(from.size()));
  return patches;
}

void scatter_patches_cpu(Tensor features, Tensor patches, Tensor index) {
  const Features f = features_of(features);
  const Patches p = patches_of(f, features, patches, index);
  if (patches.numel()) kernels().scatter(f, p);
}

}  // namespace fastsketch
