// For more samples than are sorted in shared memory, in place of steps 4 and 5 of sampling.h: every key, two stable sorts
// by the framework (by key, then by region), then the first of each region. Blocks as in step 4.
#pragma once

#include "sampling_select.h"

namespace fastsketch::sampling {

FASTSKETCH_DEVICE void write_keys(const Problem& p, double* keys, double* scratch) {
  const uint32_t image = machine::block() / p.chunks, chunk = machine::block() % p.chunks;
  const double mean = mean_density(p, image, scratch);
  for (uint32_t k = 0; k < CHUNK; k += PASS_THREADS) {
    const uint32_t position = chunk * CHUNK + k + machine::thread();
    if (position >= p.positions) return;
    double key = 0;
    race(p, image, position, mean, double(INFINITY), key);
    keys[size_t(image) * p.positions + position] = key + 0.0;
  }
}

// The region of each position in the order of the keys.
FASTSKETCH_DEVICE void write_regions(const Problem& p, const int64_t* by_key, int16_t* regions) {
  const uint32_t image = machine::block() / p.chunks, chunk = machine::block() % p.chunks;
  for (uint32_t k = 0; k < CHUNK; k += PASS_THREADS) {
    const uint32_t n = chunk * CHUNK + k + machine::thread();
    if (n >= p.positions) return;
    const size_t at = size_t(image) * p.positions + n;
    regions[at] = int16_t(load_region(p, image, uint32_t(by_key[at])));
  }
}

FASTSKETCH_DEVICE void write_first(
    const Problem& p, const int64_t* by_key, const int16_t* regions, const int64_t* by_region) {
  const uint32_t image = machine::block() / p.chunks, chunk = machine::block() % p.chunks;
  const size_t row = size_t(image) * p.positions;
  for (uint32_t k = 0; k < CHUNK; k += PASS_THREADS) {
    const uint32_t n = chunk * CHUNK + k + machine::thread();
    if (n >= p.positions) return;
    const Region& region = p.table[size_t(image) * p.width + uint32_t(regions[row + n])];
    const uint32_t rank = n - region.first_position;
    if (rank < region.quota)
      p.index[size_t(image) * p.samples + region.first_sample + rank] = by_key[row + size_t(by_region[row + n])];
  }
}

}  // namespace fastsketch::sampling
