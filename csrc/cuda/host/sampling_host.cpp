// The steps of ../sampling.h as the GPU runs them, on a CPU, for tests: one C function over plain arrays.
//   c++ -std=c++17 -O2 -shared -fPIC -o sampling_host.so sampling_host.cpp
#include <numeric>

#include "../sampling_all.h"
#include "../sampling_mass.h"
#include "../sampling_quota.h"
#include "../sampling_select.h"

using namespace fastsketch::sampling;
using fastsketch::machine::launch;

namespace {

// A stable sort of each row, as the framework's: values in place, positions out.
template <typename T>
std::vector<int64_t> stable_sort(std::vector<T>& values, size_t rows, size_t width) {
  std::vector<int64_t> order(values.size());
  for (size_t r = 0; r < rows; ++r) {
    const auto begin = order.begin() + r * width;
    std::iota(begin, begin + width, 0);
    const std::vector<T> row(values.begin() + r * width, values.begin() + (r + 1) * width);
    std::stable_sort(begin, begin + width, [&](int64_t a, int64_t b) { return row[a] < row[b]; });
    for (size_t n = 0; n < width; ++n) values[r * width + n] = row[begin[n]];
  }
  return order;
}

}  // namespace

extern "C" {

// Density and uniform are contiguous [images, positions] of a `Type`; region likewise, or null. Outputs index
// [images, samples] and quota [images, MAX_REGIONS]. Returns the most candidates an image had.
uint32_t sample_patches(
    const void* density, uint32_t density_type, const void* region, uint32_t region_type, const void* uniform,
    uint32_t uniform_type, uint32_t images, uint32_t positions, uint32_t samples, double threshold, double boost,
    uint32_t seed, int64_t* index, int64_t* quota) {
  Problem p{};
  p.density = {density, positions, 1, Type(density_type)};
  p.uniform = {uniform, positions, 1, Type(uniform_type)};
  p.region = {region, positions, 1, Type(region_type)};
  p.images = images;
  p.positions = positions;
  p.samples = samples;
  p.chunks = (positions + CHUNK - 1) / CHUNK;
  p.width = region ? MAX_REGIONS : 1;
  p.threshold = threshold;
  p.boost = boost;
  p.unit = unit_for(positions, boost);
  p.index = index;
  std::vector<double> partial(size_t(images) * p.chunks, NAN);
  std::vector<Region> table(size_t(images) * p.width);
  std::memset(static_cast<void*>(table.data()), 0xab, table.size() * sizeof(Region));
  std::vector<Image> image(images, Image{~0u, ~0u});
  std::vector<uint64_t> key(size_t(images) * positions);
  std::vector<uint32_t> place(key.size());
  p.partial = partial.data();
  p.table = table.data();
  p.image = image.data();
  p.key = key.data();
  p.place = place.data();
  fastsketch::machine::grid.random.seed(seed);

  const uint32_t blocks = images * p.chunks;
  static double scratch[PASS_THREADS];
  static MassShared mass;
  static QuotaShared quotas;
  static SelectShared chosen;
  launch(blocks, PASS_THREADS, [&] { density_sums(p, scratch); });
  launch(blocks, PASS_THREADS, [&] { region_masses(p, mass); });
  launch(images, IMAGE_THREADS, [&] { set_quotas(p, quotas); });
  if (samples <= CAPACITY) {
    launch(blocks, PASS_THREADS, [&] { collect(p, scratch); });
    launch(images, IMAGE_THREADS, [&] { select(p, chosen); });
  } else {
    std::vector<double> keys(key.size());
    std::vector<int16_t> regions(key.size());
    launch(blocks, PASS_THREADS, [&] { write_keys(p, keys.data(), scratch); });
    const std::vector<int64_t> by_key = stable_sort(keys, images, positions);
    launch(blocks, PASS_THREADS, [&] { write_regions(p, by_key.data(), regions.data()); });
    const std::vector<int64_t> by_region = stable_sort(regions, images, positions);
    launch(blocks, PASS_THREADS, [&] { write_first(p, by_key.data(), regions.data(), by_region.data()); });
  }
  uint32_t most = 0;
  for (uint32_t i = 0; i < images; ++i) {
    most = std::max(most, image[i].candidates);
    for (uint32_t r = 0; r < p.width; ++r) quota[size_t(i) * MAX_REGIONS + r] = table[size_t(i) * p.width + r].quota;
  }
  return most;
}
}
