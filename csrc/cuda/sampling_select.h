// Steps 4 and 5 of sampling.h: the race keys -log(u) / w, and the smallest of each region in order.
//
// As -log(u) >= 1 - u, a key below a bound t has 1 - u <= t w: a comparison spares most positions the logarithm. What
// passes is an image's list of candidates, in no particular order. One block then sorts them; where they are more than
// it can hold, a radix selection finds each region's threshold first.
#pragma once

#include "sampling.h"

namespace fastsketch::sampling {

struct SelectShared {
  union {
    struct {
      uint64_t key[CAPACITY];
      uint32_t place[CAPACITY];
    };
    uint32_t count[16 * MAX_REGIONS];  // of each digit, by region
  };
  uint64_t key_limit[MAX_REGIONS];  // while selecting, the digits so far; then the last chosen key
  uint32_t position_limit[MAX_REGIONS];
  uint32_t wanted[MAX_REGIONS];  // keys still to find among those that begin with the digits so far; 0: done
  uint32_t first[MAX_REGIONS];   // place of a region's first entry among the sorted ones
  uint32_t held;
};

// Key of a position, where it may lie up to the region's bound.
FASTSKETCH_DEVICE bool race(
    const Problem& p, uint32_t image, uint32_t position, double mean, double bound, double& key) {
  const double weight = weight_of(load_number(p, p.density, image, position), mean, p.threshold, p.boost);
  double u = load_number(p, p.uniform, image, position);
  u = u < LEAST_UNIFORM ? LEAST_UNIFORM : u;
  if (1 - u > bound * weight * (1 + 1e-9)) return false;  // rounding must not lose a candidate
  key = -log(u) / weight;
  return !(key > bound);
}

// Adds to the candidates what the threads' `position` (or none, past the end) has to give. All lanes together.
FASTSKETCH_DEVICE void collect_one(const Problem& p, uint32_t image, uint32_t position, double mean) {
  const size_t row = size_t(image) * p.width;
  uint32_t region = MAX_REGIONS;
  double key = 0;
  bool taken = false;
  if (position < p.positions) {
    region = load_region(p, image, position);
    const double bound = p.table[row + region].bound;
    taken = bound >= 0 && race(p, image, position, mean, bound, key);
  }
  const uint32_t takers = machine::ballot(taken);
  if (takers == 0) return;
  const uint32_t group = machine::lanes_like_mine(taken ? region : MAX_REGIONS);
  if (taken && machine::lane() == machine::lowest_bit(group))
    machine::add(&p.table[row + region].found, machine::count_bits(group));
  const uint32_t leader = machine::lowest_bit(takers);
  uint32_t at = 0;
  if (machine::lane() == leader) at = machine::add(&p.image[image].candidates, machine::count_bits(takers));
  at = machine::from_lane(at, leader) + machine::count_bits(takers & ((1u << machine::lane()) - 1));
  if (!taken) return;
  p.key[size_t(image) * p.positions + at] = order_bits(key);
  p.place[size_t(image) * p.positions + at] = place_of(region, position);
}

// Step 4. A block has PASS_THREADS threads and one chunk of one image.
FASTSKETCH_DEVICE void collect(const Problem& p, double* scratch) {
  const uint32_t image = machine::block() / p.chunks, chunk = machine::block() % p.chunks;
  const double mean = mean_density(p, image, scratch);
  for (uint32_t k = 0; k < CHUNK; k += PASS_THREADS) collect_one(p, image, chunk * CHUNK + k + machine::thread(), mean);
}

// Collects anew, with wider bounds, until every region has enough. Rare.
FASTSKETCH_DEVICE void collect_missing(const Problem& p, uint32_t image, SelectShared& shared) {
  const uint32_t t = machine::thread(), regions = p.image[image].regions;
  Region* row = t < regions ? &p.table[size_t(image) * p.width + t] : nullptr;
  double mean = 0;
  for (double growth = 8;; growth *= 8) {
    const bool missing = row && row->found < row->quota;
    if (!machine::sync_any(missing)) return;
    if (growth == 8) mean = mean_density(p, image, reinterpret_cast<double*>(shared.key));
    if (missing) row->bound = growth < 1e4 ? row->bound * growth : double(INFINITY);
    if (row) row->found = 0;
    if (t == 0) p.image[image].candidates = 0;
    machine::sync();
    for (uint32_t begin = 0; begin < p.positions; begin += machine::threads()) collect_one(p, image, begin + t, mean);
    machine::sync();
  }
}

// A candidate's digits: its key's from the highest, then its position's, so that no two candidates are the same.
constexpr uint32_t KEY_BITS = 64;
constexpr uint32_t PLACE_BITS = 24;  // position_of, to a multiple of both digit widths

FASTSKETCH_BOTH uint64_t ones(uint32_t bits) { return bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1; }

// One digit: `bits` wide, at `shift` of the key or, after that, of the position.
struct Digit {
  uint32_t bits, shift;
  bool in_key;
};

FASTSKETCH_BOTH Digit digit_at(uint32_t step, uint32_t bits) {
  const uint32_t done = (step + 1) * bits;
  const bool in_key = done <= KEY_BITS;
  return {bits, in_key ? KEY_BITS - done : KEY_BITS + PLACE_BITS - done, in_key};
}

// The digit's value, if the higher digits are those of the limit.
FASTSKETCH_BOTH bool digit_of(
    const Digit& d, uint64_t key, uint32_t position, uint64_t key_limit, uint32_t position_limit, uint32_t& value) {
  const uint64_t of = d.in_key ? key : position, limit = d.in_key ? key_limit : position_limit;
  value = uint32_t(of >> d.shift & ones(d.bits));
  const bool same = ((of ^ limit) & ~ones(d.shift + d.bits)) == 0;
  return same && (d.in_key || key == key_limit);
}

// For each region the (key, position) of its last sample, by radix selection: a region's candidates with the digits so
// far are counted by their next digit, which is then that of the wanted one.
FASTSKETCH_DEVICE void find_limits(const Problem& p, uint32_t image, uint32_t candidates, SelectShared& shared) {
  const uint32_t t = machine::thread(), threads = machine::threads(), regions = p.image[image].regions;
  const uint64_t* keys = p.key + size_t(image) * p.positions;
  const uint32_t* places = p.place + size_t(image) * p.positions;
  const uint32_t bits = regions <= 64 ? 8 : 4, values = 1u << bits;
  for (uint32_t r = t; r < regions; r += threads) {
    shared.key_limit[r] = 0;
    shared.position_limit[r] = 0;
    shared.wanted[r] = p.table[size_t(image) * p.width + r].quota;
  }
  for (uint32_t step = 0; step < (KEY_BITS + PLACE_BITS) / bits; ++step) {
    const Digit digit = digit_at(step, bits);
    machine::sync();
    for (uint32_t n = t; n < regions * values; n += threads) shared.count[n] = 0;
    machine::sync();
    for (uint32_t begin = 0; begin < candidates; begin += threads) {
      const uint32_t n = begin + t;
      uint32_t at = ~0u, value = 0;
      if (n < candidates) {
        const uint32_t region = region_of(places[n]);
        if (shared.wanted[region] != 0 &&
            digit_of(
                digit, keys[n], position_of(places[n]), shared.key_limit[region], shared.position_limit[region], value))
          at = region * values + value;
      }
      const uint32_t group = machine::lanes_like_mine(at);
      if (at != ~0u && machine::lane() == machine::lowest_bit(group))
        machine::add(&shared.count[at], machine::count_bits(group));
    }
    machine::sync();
    // A warp for each region, a lane for each run of values.
    const uint32_t run = (values + machine::WARP - 1) / machine::WARP;
    bool more = false;
    for (uint32_t r = t / machine::WARP; r < regions; r += threads / machine::WARP) {
      const uint32_t wanted = shared.wanted[r], from = machine::lane() * run;
      if (wanted == 0) continue;
      uint32_t mine = 0;
      for (uint32_t v = from; v < from + run && v < values; ++v) mine += shared.count[r * values + v];
      uint32_t before = mine;
      for (uint32_t step_back = 1; step_back < machine::WARP; step_back *= 2) {
        const uint32_t lower = machine::from_lane(before, (machine::lane() - step_back) % machine::WARP);
        if (machine::lane() >= step_back) before += lower;
      }
      before -= mine;
      const bool here = before < wanted && wanted <= before + mine;
      uint32_t left = wanted;
      if (here) {
        uint32_t value = from;
        left -= before;
        while (left > shared.count[r * values + value]) left -= shared.count[r * values + value++];
        const bool all = left == shared.count[r * values + value];  // the rest of the digits does not matter
        const uint64_t found = uint64_t(value) << digit.shift | (all ? ones(digit.shift) : 0);
        if (digit.in_key) {
          shared.key_limit[r] |= found;
          if (all) shared.position_limit[r] = ~0u;
        } else {
          shared.position_limit[r] |= uint32_t(found);
        }
        if (all) left = 0;
      }
      left = machine::from_lane(left, machine::lowest_bit(machine::ballot(here)));
      if (machine::lane() == 0) shared.wanted[r] = left;
      more = more || left != 0;
    }
    if (!machine::sync_any(more)) return;
  }
}

// Moves what is within the limits, or everything, to shared memory. Returns how many that is.
FASTSKETCH_DEVICE uint32_t gather(
    const Problem& p, uint32_t image, uint32_t candidates, bool limited, SelectShared& shared) {
  const uint32_t t = machine::thread();
  const uint64_t* keys = p.key + size_t(image) * p.positions;
  const uint32_t* places = p.place + size_t(image) * p.positions;
  machine::sync();
  if (t == 0) shared.held = 0;
  machine::sync();
  for (uint32_t n = t; n < candidates; n += machine::threads()) {
    const uint64_t key = keys[n];
    const uint32_t place = places[n], region = region_of(place);
    if (limited) {
      const bool in_table = p.table[size_t(image) * p.width + region].quota != 0;
      const uint64_t limit = shared.key_limit[region];
      if (!in_table || key > limit || (key == limit && position_of(place) > shared.position_limit[region])) continue;
    }
    const uint32_t at = machine::add(&shared.held, 1u);
    if (at >= CAPACITY) continue;  // never, and if it were: no address out of bounds
    shared.key[at] = key;
    shared.place[at] = place;
  }
  machine::sync();
  return shared.held < CAPACITY ? shared.held : CAPACITY;
}

FASTSKETCH_BOTH bool comes_before(uint64_t key_a, uint32_t place_a, uint64_t key_b, uint32_t place_b) {
  if (region_of(place_a) != region_of(place_b)) return place_a < place_b;
  return key_a != key_b ? key_a < key_b : place_a < place_b;
}

// Bitonic sort of the first `count` entries by region, key and position.
FASTSKETCH_DEVICE void sort(SelectShared& shared, uint32_t count) {
  const uint32_t t = machine::thread(), threads = machine::threads();
  uint32_t size = 2;
  while (size < count) size *= 2;
  for (uint32_t n = count + t; n < size; n += threads) {
    shared.key[n] = ~uint64_t{0};
    shared.place[n] = ~0u;
  }
  for (uint32_t block = 2; block <= size; block *= 2)
    for (uint32_t stride = block / 2; stride > 0; stride /= 2) {
      machine::sync();
      for (uint32_t pair = t; pair < size / 2; pair += threads) {
        const uint32_t a = 2 * pair - (pair & (stride - 1)), b = a + stride;
        const uint64_t key_a = shared.key[a], key_b = shared.key[b];
        const uint32_t place_a = shared.place[a], place_b = shared.place[b];
        const bool up = (a & block) == 0;
        if (up ? comes_before(key_b, place_b, key_a, place_a) : comes_before(key_a, place_a, key_b, place_b)) {
          shared.key[a] = key_b;
          shared.key[b] = key_a;
          shared.place[a] = place_b;
          shared.place[b] = place_a;
        }
      }
    }
  machine::sync();
}

// Step 5, for at most CAPACITY samples. A block has IMAGE_THREADS threads and one image.
FASTSKETCH_DEVICE void select(const Problem& p, SelectShared& shared) {
  const uint32_t image = machine::block(), t = machine::thread();
  collect_missing(p, image, shared);
  const uint32_t candidates = p.image[image].candidates;
  const bool limited = candidates > CAPACITY;
  if (limited) find_limits(p, image, candidates, shared);
  const uint32_t held = gather(p, image, candidates, limited, shared);
  sort(shared, held);
  for (uint32_t n = t; n < held; n += machine::threads())
    if (n == 0 || region_of(shared.place[n - 1]) != region_of(shared.place[n])) shared.first[region_of(shared.place[n])] = n;
  machine::sync();
  for (uint32_t n = t; n < held; n += machine::threads()) {
    const uint32_t region = region_of(shared.place[n]), rank = n - shared.first[region];
    const Region& row = p.table[size_t(image) * p.width + region];
    if (rank < row.quota) p.index[size_t(image) * p.samples + row.first_sample + rank] = position_of(shared.place[n]);
  }
}

}  // namespace fastsketch::sampling
