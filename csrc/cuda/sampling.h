// Density sampling in regions on a GPU: what the kernels share. Specified by fastsketch/reference/sampling.py.
//
// Five launches for any number of images, none of which looks at data from the host:
//   1 density_sums     partial sums of the density                                   sampling_mass.h
//   2 region_masses    weight and size of each region                                sampling_mass.h
//   3 set_quotas       samples of each region, and a bound that enough keys lie under sampling_quota.h
//   4 collect          the keys under the bound                                      sampling_select.h
//   5 select           the smallest of each region, in order                         sampling_select.h
// For more samples than CAPACITY two sorts by the framework take the place of the last two (sampling_all.h).
// Sums are integers or have a fixed order, so that the result is the same bit for bit however the blocks are scheduled.
#pragma once

#include <cmath>
#include <cstdint>

#include "machine.h"

namespace fastsketch::sampling {

// As in fastsketch/reference/sampling.py.
constexpr double LEAST_WEIGHT = 1e-30;
constexpr double LEAST_UNIFORM = 1.0 / 8589934592.0;  // 2^-33
constexpr double SHARE_STEPS = 16777216.0;            // 2^24

constexpr double MOST_WEIGHT = 1.7976931348623157e308;  // the largest number, where a boost overflows
constexpr uint32_t MAX_REGIONS = 1024;
constexpr uint32_t POSITION_BITS = 20;
constexpr uint32_t MAX_POSITIONS = 1u << POSITION_BITS;

constexpr uint32_t PASS_THREADS = 256;          // of a block that passes over a chunk of an image
constexpr uint32_t CHUNK = 4 * PASS_THREADS;    // positions of a block
constexpr uint32_t IMAGE_THREADS = 1024;        // of the one block of an image
constexpr uint32_t CAPACITY = 4096;             // keys that are sorted in shared memory

// A weight is split into LIMBS integers of LIMB_BITS bits, in units of a power of two above every possible weight. Sums
// of limbs are exact, so the order of addition does not matter; 126 bits lose nothing that a double would keep.
constexpr uint32_t LIMBS = 6;
constexpr uint32_t LIMB_BITS = 21;
constexpr double LIMB = 2097152.0;  // 2^21

enum class Type : uint32_t { f32, f64, bf16, f16, i64, i32, i16, u8 };

// A tensor [B, N] of any strides, in elements.
struct Input {
  const void* data;
  int64_t image_stride, stride;
  Type type;
};

// A region's row of the table.
struct Region {
  uint64_t mass[LIMBS / 2];  // pairs of limbs, summed
  double bound;              // keys up to it are collected; below 0: the region gets no sample
  uint32_t size, quota, found;
  uint32_t first_position, first_sample;  // of this region, were positions (samples) ordered by region
  uint32_t unused;
};

// One image's counters.
struct Image {
  uint32_t regions;     // highest id + 1
  uint32_t candidates;  // keys collected
};

struct Problem {
  Input density, uniform, region;  // region.data is null for one region
  uint32_t first_image;  // of the inputs; everything else begins with it
  uint32_t images, positions, samples, chunks;
  uint32_t width;  // rows of an image in `table`: 1 without regions, else MAX_REGIONS
  double threshold, boost;
  double unit;     // weight * unit < 1
  int64_t* index;  // [B, S]

  double* partial;        // [B, chunks]
  Region* table;          // [B, width]
  Image* image;           // [B]
  uint64_t* key;          // [B, N] candidates: bits of the key
  uint32_t* place;        // [B, N] candidates: region and position
};

FASTSKETCH_BOTH uint32_t place_of(uint32_t region, uint32_t position) { return region << POSITION_BITS | position; }
FASTSKETCH_BOTH uint32_t region_of(uint32_t place) { return place >> POSITION_BITS; }
FASTSKETCH_BOTH uint32_t position_of(uint32_t place) { return place & (MAX_POSITIONS - 1); }

// A power of two that scales every weight of an image below 1: density over its mean is at most the positions.
inline double unit_for(uint32_t positions, double boost) {
  int exponent = 0;
  std::frexp(std::fmin(double(positions) * std::fmax(boost, 1.0), MOST_WEIGHT), &exponent);
  return std::ldexp(1.0, -exponent - 1);
}

FASTSKETCH_BOTH double weight_of(double density, double mean, double threshold, double boost) {
  const double d = mean > 0 ? density / mean : 0;
  const double weight = d > threshold ? d * boost : d;
  if (!(weight > LEAST_WEIGHT)) return LEAST_WEIGHT;  // also what is no number
  return weight < MOST_WEIGHT ? weight : MOST_WEIGHT;
}

// Splits weight * unit. Where an image has no density all weights count alike.
FASTSKETCH_BOTH void split(double weight, double mean, double unit, uint32_t limb[LIMBS]) {
  double rest = mean > 0 ? weight * unit : 0.5;
  if (!(rest < 1)) rest = 0.5;  // negative densities can do that; they were refused where values are checked
  for (uint32_t k = 0; k < LIMBS; ++k) {
    rest *= LIMB;
    limb[k] = uint32_t(rest);
    rest -= double(limb[k]);
  }
}

// The mass of a region, in units of 2^-42 / unit.
FASTSKETCH_BOTH double mass_of(const uint64_t pair[LIMBS / 2]) {
  constexpr double PAIR = 1.0 / (LIMB * LIMB);
  return double(pair[0]) + (double(pair[1]) + double(pair[2]) * PAIR) * PAIR;
}

// Non-negative doubles are ordered as their bits. A key that is no number comes last, as in a sort.
FASTSKETCH_DEVICE uint64_t order_bits(double key) {
  return key >= 0 ? machine::bits_of(key + 0.0) : ~uint64_t{0};  // + 0.0: the one zero
}

FASTSKETCH_DEVICE float half_value(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * (1.0f / 16777216.0f);
  return machine::float_of(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

FASTSKETCH_DEVICE double load_number(const Problem& p, const Input& input, uint32_t image, uint32_t position) {
  const int64_t at = (int64_t(p.first_image) + image) * input.image_stride + int64_t(position) * input.stride;
  switch (input.type) {
    case Type::f32:
      return double(static_cast<const float*>(input.data)[at]);
    case Type::f64:
      return static_cast<const double*>(input.data)[at];
    case Type::bf16:
      return double(machine::float_of(uint32_t(static_cast<const uint16_t*>(input.data)[at]) << 16));
    default:
      return double(half_value(static_cast<const uint16_t*>(input.data)[at]));
  }
}

// Ids outside [0, MAX_REGIONS) are refused where values are checked; unchecked they must not become an address.
FASTSKETCH_DEVICE uint32_t load_region(const Problem& p, uint32_t image, uint32_t position) {
  if (!p.region.data) return 0;
  const int64_t at = (int64_t(p.first_image) + image) * p.region.image_stride + int64_t(position) * p.region.stride;
  int64_t id = 0;
  switch (p.region.type) {
    case Type::i64:
      id = static_cast<const int64_t*>(p.region.data)[at];
      break;
    case Type::i32:
      id = static_cast<const int32_t*>(p.region.data)[at];
      break;
    case Type::i16:
      id = static_cast<const int16_t*>(p.region.data)[at];
      break;
    default:
      id = static_cast<const uint8_t*>(p.region.data)[at];
  }
  return id < 0 ? 0 : id >= MAX_REGIONS ? MAX_REGIONS - 1 : uint32_t(id);
}

// Sum over the block in a fixed order, in every thread. `scratch`: as many values as the block has threads.
template <typename T>
FASTSKETCH_DEVICE T block_sum(T value, T* scratch) {
  machine::sync();  // the last reading of scratch
  scratch[machine::thread()] = value;
  for (uint32_t half = machine::threads() / 2; half > 0; half /= 2) {
    machine::sync();
    if (machine::thread() < half) scratch[machine::thread()] += scratch[machine::thread() + half];
  }
  machine::sync();
  return scratch[0];
}

// The mean density of an image, from its partial sums.
FASTSKETCH_DEVICE double mean_density(const Problem& p, uint32_t image, double* scratch) {
  double sum = 0;
  const double* partial = p.partial + size_t(image) * p.chunks;
  for (uint32_t c = machine::thread(); c < p.chunks; c += machine::threads()) sum += partial[c];
  return block_sum(sum, scratch) / double(p.positions);
}

}  // namespace fastsketch::sampling
