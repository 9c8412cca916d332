// place_positions on CPU tensors: positions of one grid put into others that cover the same picture.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

// A random cell of the block that cell `place` of `grid` cells covers among `cells`; u in [0, 1).
int64_t place_in_block(int64_t place, int64_t grid, int64_t cells, float u) {
  const int64_t first = place * cells / grid;
  const int64_t size = std::max<int64_t>((place + 1) * cells / grid - first, 1);
  return first + std::min(int64_t(u * float(size)), size - 1);
}

}  // namespace

std::vector<Tensor> place_positions_cpu(
    Tensor index, std::vector<int64_t> grid, std::vector<int64_t> sizes, std::vector<int64_t> borders, Tensor uniform) {
  STD_TORCH_CHECK(grid.size() == 2 && grid[0] > 0 && grid[1] > 0, "grid must hold two positive sides");
  const size_t layers = borders.size();
  STD_TORCH_CHECK(sizes.size() == 2 * layers, "sizes must hold two sides a layer");
  STD_TORCH_CHECK(index.dim() == 2, "index must have 2 dimensions, got ", index.dim());
  check_type(index, "index", ScalarType::Long);
  check_type(uniform, "uniform", ScalarType::Float);
  const int64_t images = index.size(0), samples = index.size(1), count = images * samples;
  check_shape(uniform, "uniform", {int64_t(layers), 2, images, samples});
  const int64_t* from = contiguous_data<int64_t>(index, "index");
  const float* u = contiguous_data<float>(uniform, "uniform");
  std::vector<Tensor> placed;
  for (size_t n = 0; n < layers; ++n, u += 2 * count) {
    const int64_t height = sizes[2 * n], width = sizes[2 * n + 1], border = borders[n];
    STD_TORCH_CHECK(
        height > 2 * border && width > 2 * border, "border ", border, " leaves nothing of size ", height, ", ", width);
    placed.push_back(torch::stable::empty_like(index));
    int64_t* to = placed.back().mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t y = place_in_block(from[i] / grid[1], grid[0], height - 2 * border, u[i]) + border;
      const int64_t x = place_in_block(from[i] % grid[1], grid[1], width - 2 * border, u[count + i]) + border;
      to[i] = y * width + x;
    }
  }
  return placed;
}

}  // namespace fastsketch
