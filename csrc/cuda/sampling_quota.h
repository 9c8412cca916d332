// Step 3 of sampling.h: largest-remainder rounding of the regions' shares, as region_quota of the reference. A block has
// IMAGE_THREADS threads, one for each region, and one image.
#pragma once

#include "sampling.h"

namespace fastsketch::sampling {

struct QuotaShared {
  double priority[MAX_REGIONS];
  int32_t room[MAX_REGIONS];
  union {
    double scratch[IMAGE_THREADS];
    uint64_t pairs[IMAGE_THREADS];
    int32_t count;
  };
};

// Sum of room over the regions that come before this thread's: higher priority, or the same and a lower id.
FASTSKETCH_DEVICE int32_t room_before(QuotaShared& shared, uint32_t regions, double priority, int32_t room) {
  const uint32_t r = machine::thread();
  machine::sync();
  shared.priority[r] = priority;
  shared.room[r] = room;
  machine::sync();
  int32_t before = 0;
  if (r < regions)
    for (uint32_t s = 0; s < regions; ++s)
      if (shared.priority[s] > priority || (shared.priority[s] == priority && s < r)) before += shared.room[s];
  return before;
}

// What this thread's region gets when `amount` is handed out in order of priority, as much to each as it has room.
FASTSKETCH_DEVICE int32_t fill(
    QuotaShared& shared, uint32_t regions, int32_t amount, int32_t room, double priority) {
  const int32_t left = amount - room_before(shared, regions, priority, room);
  return left < 0 ? 0 : left < room ? left : room;
}

FASTSKETCH_DEVICE int32_t sum_of(QuotaShared& shared, int32_t value) {
  machine::sync();
  if (machine::thread() == 0) shared.count = 0;
  machine::sync();
  if (value != 0) machine::add(reinterpret_cast<uint32_t*>(&shared.count), uint32_t(value));
  machine::sync();
  return shared.count;
}

FASTSKETCH_DEVICE void set_quotas(const Problem& p, QuotaShared& shared) {
  const uint32_t image = machine::block(), r = machine::thread(), regions = p.image[image].regions;
  Region* row = r < regions ? &p.table[size_t(image) * p.width + r] : nullptr;
  const int32_t size = row ? int32_t(row->size) : 0, samples = int32_t(p.samples);
  const bool present = size > 0;

  const double mean = mean_density(p, image, shared.scratch);
  uint64_t pairs[LIMBS / 2];
  for (uint32_t k = 0; k < LIMBS / 2; ++k) pairs[k] = block_sum(row ? row->mass[k] : uint64_t{0}, shared.pairs);
  double total = mass_of(pairs), mass = row ? mass_of(row->mass) : 0;
  if (!(total > 0)) {  // all weights below the last limb, for a boost beyond all use: they count alike
    total = double(p.positions);
    mass = double(size);
  }
  const double share = rint(double(samples) * mass / total * SHARE_STEPS) / SHARE_STEPS;
  int32_t quota = int32_t(floor(share));
  const int32_t left = samples - sum_of(shared, quota);
  const int32_t rank = room_before(shared, regions, present ? share - floor(share) : -1.0, 1);
  quota += row && rank < left;

  const int32_t over = quota > size ? quota - size : 0;
  quota -= over;
  quota += fill(shared, regions, sum_of(shared, over), size - quota, share);

  const bool enough = sum_of(shared, present) <= samples;
  const int32_t lift = present && quota == 0 && enough;
  const int32_t spare = quota > 1 ? quota - 1 : 0;
  const int32_t lifted = sum_of(shared, lift);
  quota += lift - fill(shared, regions, lifted, spare, double(quota));

  // Places among positions and samples ordered by region: what lower ids hold.
  const int32_t positions_before = room_before(shared, regions, 0.0, size);
  const int32_t samples_before = room_before(shared, regions, 0.0, quota);
  if (!row) return;
  row->quota = uint32_t(quota);
  row->first_position = uint32_t(positions_before);
  row->first_sample = uint32_t(samples_before);
  // About bound * mass keys lie below a small bound, for independent uniforms. Six standard deviations above the mean
  // leave a second pass to one image in a billion; a few heavy positions, which lie below any bound, need one too.
  const double aim = quota + 6 * sqrt(double(quota)) + 12;
  const double least = double(size) * LEAST_WEIGHT, scaled = mean > 0 ? mass / (p.unit * LIMB * LIMB) : least;
  row->bound = quota == 0 ? -1 : size > 4 * aim ? 1.5 * aim / (scaled > least ? scaled : least) : double(INFINITY);
}

}  // namespace fastsketch::sampling
