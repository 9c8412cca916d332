// Steps 1 and 2 of sampling.h: the density's sum, and each region's weight and size. A block has PASS_THREADS threads
// and one chunk of one image.
#pragma once

#include "sampling.h"

namespace fastsketch::sampling {

struct MassShared {
  union {
    double scratch[PASS_THREADS];
    uint32_t limb[LIMBS][MAX_REGIONS];
  };
  uint32_t size[MAX_REGIONS];
};

FASTSKETCH_DEVICE void density_sums(const Problem& p, double* scratch) {
  const uint32_t image = machine::block() / p.chunks, chunk = machine::block() % p.chunks, t = machine::thread();
  for (uint32_t r = chunk * PASS_THREADS + t; r < p.width; r += p.chunks * PASS_THREADS)
    p.table[size_t(image) * p.width + r] = Region{};
  if (chunk == 0 && t == 0) p.image[image] = Image{};

  double sum = 0;
  for (uint32_t k = 0; k < CHUNK; k += PASS_THREADS) {
    const uint32_t position = chunk * CHUNK + k + t;
    if (position < p.positions) sum += load_number(p, p.density, image, position);
  }
  sum = block_sum(sum, scratch);
  if (t == 0) p.partial[machine::block()] = sum;
}

FASTSKETCH_DEVICE void region_masses(const Problem& p, MassShared& shared) {
  const uint32_t image = machine::block() / p.chunks, chunk = machine::block() % p.chunks, t = machine::thread();
  const double mean = mean_density(p, image, shared.scratch);
  machine::sync();  // scratch becomes limbs
  for (uint32_t r = t; r < p.width; r += PASS_THREADS) {
    for (uint32_t k = 0; k < LIMBS; ++k) shared.limb[k][r] = 0;
    shared.size[r] = 0;
  }
  machine::sync();

  // Lanes of the same region add up among themselves first. A block adds at most CHUNK limbs: 31 bits.
  for (uint32_t k = 0; k < CHUNK; k += PASS_THREADS) {
    const uint32_t position = chunk * CHUNK + k + t;
    const bool inside = position < p.positions;
    uint32_t limb[LIMBS] = {}, region = MAX_REGIONS;
    if (inside) {
      region = load_region(p, image, position);
      split(weight_of(load_number(p, p.density, image, position), mean, p.threshold, p.boost), mean, p.unit, limb);
    }
    const uint32_t group = machine::lanes_like_mine(region);
    const bool first = inside && machine::lane() == machine::lowest_bit(group);
    for (uint32_t l = 0; l < LIMBS; ++l) {
      const uint32_t sum = machine::group_sum(group, limb[l]);
      if (first) machine::add(&shared.limb[l][region], sum);
    }
    if (first) machine::add(&shared.size[region], machine::count_bits(group));
  }
  machine::sync();

  uint32_t regions = 0;
  for (uint32_t r = t; r < p.width; r += PASS_THREADS) {
    if (shared.size[r] == 0) continue;
    regions = r + 1;
    Region& row = p.table[size_t(image) * p.width + r];
    for (uint32_t k = 0; k < LIMBS; k += 2)
      machine::add(&row.mass[k / 2], (uint64_t(shared.limb[k][r]) << LIMB_BITS) + shared.limb[k + 1][r]);
    machine::add(&row.size, shared.size[r]);
  }
  if (regions) machine::raise(&p.image[image].regions, regions);
}

}  // namespace fastsketch::sampling
