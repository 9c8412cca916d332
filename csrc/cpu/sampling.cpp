// Density sampling in regions: docs/method.md section 4. Specified by fastsketch/reference/sampling.py, index for
// index.
//
// A position's race key is -log(u) / w in double precision, and the n_r smallest of each region are wanted. As
// -log(u) >= 1 - u, every key below a bound t has 1 - u <= t w: a comparison finds a few candidates in one pass over
// the image, and only those pay for a logarithm. t is guessed from the region's weight (about t * weight keys lie
// below t, for independent uniforms) and grows until enough keys are found. The logarithms are the framework's own, so
// that keys which tie in the reference tie here.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace fastsketch {
namespace {

// As in fastsketch/reference/sampling.py.
constexpr double LEAST_WEIGHT = 1e-30;
constexpr double LEAST_UNIFORM = 0x1p-33;
constexpr double SHARE_STEPS = 0x1p24;
constexpr int64_t MAX_REGIONS = 1024;
constexpr double INFINITY_KEY = std::numeric_limits<double>::infinity();

struct Candidate {
  double key;
  int64_t position;
  bool operator<(const Candidate& other) const {
    return key != other.key ? key < other.key : position < other.position;
  }
};

struct Region {
  double mass = 0, share = 0, bound = 0;
  int64_t size = 0, quota = 0;
  std::vector<Candidate> found;
};

// Positions 0.. in order of descending value, ties by position.
template <typename Value>
std::vector<int64_t> descending(int64_t count, const Value& value) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return value(a) > value(b); });
  return order;
}

// Largest-remainder rounding of the regions' shares, as region_quota of the reference.
void set_quotas(std::vector<Region>& regions, int64_t samples) {
  const int64_t count = int64_t(regions.size());
  double total = 0;
  for (const Region& r : regions) total += r.mass;
  std::vector<double> remainder(count);
  int64_t left = samples, present = 0;
  for (int64_t r = 0; r < count; ++r) {
    Region& region = regions[r];
    const double share = std::nearbyint(double(samples) * region.mass / total * SHARE_STEPS) / SHARE_STEPS;
    region.share = share;
    region.quota = int64_t(std::floor(share));
    remainder[r] = region.size > 0 ? share - std::floor(share) : -1;
    left -= region.quota;
    present += region.size > 0;
  }
  for (int64_t r : descending(count, [&](int64_t i) { return remainder[i]; })) {
    if (left <= 0) break;
    ++regions[r].quota;
    --left;
  }
  int64_t over = 0;
  for (Region& region : regions) {
    const int64_t above = std::max<int64_t>(region.quota - region.size, 0);
    region.quota -= above;
    over += above;
  }
  for (int64_t r : descending(count, [&](int64_t i) { return regions[i].share; })) {
    const int64_t given = std::min(over, regions[r].size - regions[r].quota);
    regions[r].quota += given;
    over -= given;
  }
  if (present > samples) return;
  int64_t lift = 0;
  const std::vector<int64_t> largest = descending(count, [&](int64_t i) { return regions[i].quota; });
  std::vector<int64_t> before(count);
  for (int64_t r = 0; r < count; ++r) before[r] = regions[r].quota;
  for (Region& region : regions)
    if (region.size > 0 && region.quota == 0) {
      region.quota = 1;
      ++lift;
    }
  for (int64_t r : largest) {
    const int64_t taken = std::min(lift, std::max<int64_t>(before[r] - 1, 0));
    regions[r].quota -= taken;
    lift -= taken;
  }
}

// One image, between passes over it.
class Image {
 public:
  Image(const Sampling& s, int64_t image)
      : s_(s), region_(s.region ? s.region + image * s.positions : nullptr), image_(image), weight_(s.positions) {
    s.density_double ? set_weights<double>() : set_weights<float>();
    s.uniform_double ? check_uniform<double>() : check_uniform<float>();
    measure();
    set_quotas(regions_, s.samples);
    for (Region& region : regions_) {
      if (region.quota == 0) continue;
      // Six standard deviations above the mean count leave a second pass to one image in a billion.
      const double wanted = double(region.quota), aim = wanted + 6 * std::sqrt(wanted) + 12;
      region.bound = double(region.size) > 4 * aim ? 1.5 * aim / region.mass : INFINITY_KEY;
    }
  }

  // Collects, for every region that misses keys, the positions whose key may lie up to its bound: `uniforms` holds
  // their u, to be replaced by log u before `select`.
  void collect() {
    uniforms.clear();
    positions_.clear();
    std::vector<double> bound(regions_.size(), -1);  // below every 1 - u: passed over
    for (size_t r = 0; r < regions_.size(); ++r) {
      if (!missing(regions_[r])) continue;
      regions_[r].found.clear();
      bound[r] = regions_[r].bound * (1 + 1e-9);  // rounding must not lose a candidate
    }
    s_.uniform_double ? collect_below<double>(bound) : collect_below<float>(bound);
  }

  // Sorts the collected keys into their regions; true if every region has enough, else the bounds are raised.
  bool select() {
    for (size_t n = 0; n < positions_.size(); ++n) {
      Region& region = regions_[region_ ? region_[positions_[n]] : 0];
      const double key = -uniforms[n] / weight_[positions_[n]];
      if (key <= region.bound) region.found.push_back({key, positions_[n]});
    }
    growth_ *= 8;
    for (Region& region : regions_)
      if (missing(region)) region.bound = growth_ < 1e4 ? region.bound * growth_ : INFINITY_KEY;
    return std::none_of(regions_.begin(), regions_.end(), missing);
  }

  void write() {
    int64_t* index = s_.index + image_ * s_.samples;
    for (Region& region : regions_) {
      std::partial_sort(region.found.begin(), region.found.begin() + region.quota, region.found.end());
      for (int64_t n = 0; n < region.quota; ++n) *index++ = region.found[n].position;
    }
  }

  std::vector<double> uniforms;

 private:
  static bool missing(const Region& region) { return int64_t(region.found.size()) < region.quota; }

  template <typename Density>
  void set_weights() {
    const Density* density = static_cast<const Density*>(s_.density) + image_ * s_.positions;
    double total = 0;
    bool right = true;
    for (int64_t j = 0; j < s_.positions; ++j) {
      right &= density[j] >= 0 && density[j] < std::numeric_limits<Density>::infinity();
      total += double(density[j]);
    }
    if (!right) throw std::out_of_range("density must be finite and non-negative");
    if (!std::isfinite(total)) throw std::out_of_range("density must have a finite sum");
    const double mean = total / double(s_.positions);
    for (int64_t j = 0; j < s_.positions; ++j) {
      const double d = mean > 0 ? double(density[j]) / mean : 0;
      const double boosted = d > s_.threshold ? d * s_.boost : d;
      weight_[j] = boosted > LEAST_WEIGHT ? boosted : LEAST_WEIGHT;
    }
  }

  template <typename Uniform>
  void check_uniform() const {
    const Uniform* uniform = static_cast<const Uniform*>(s_.uniform) + image_ * s_.positions;
    bool right = true;
    for (int64_t j = 0; j < s_.positions; ++j) right &= uniform[j] >= 0 && uniform[j] <= 1;
    if (!right) throw std::out_of_range("uniform must lie in [0, 1]");
  }

  void measure() {
    int64_t count = 1;
    if (region_) {
      const auto ends = std::minmax_element(region_, region_ + s_.positions);
      if (*ends.first < 0 || *ends.second >= MAX_REGIONS) throw std::out_of_range("region must lie in [0, 1024)");
      count += *ends.second;
    }
    regions_.resize(count);
    for (int64_t j = 0; j < s_.positions; ++j) {
      Region& region = regions_[region_ ? region_[j] : 0];
      region.mass += weight_[j];
      ++region.size;
    }
  }

  template <typename Uniform>
  void collect_below(const std::vector<double>& bound) {
    const Uniform* uniform = static_cast<const Uniform*>(s_.uniform) + image_ * s_.positions;
    for (int64_t j = 0; j < s_.positions; ++j) {
      const double below = bound[region_ ? region_[j] : 0], u = double(uniform[j]);
      if (below < 0 || 1 - u > below * weight_[j]) continue;
      positions_.push_back(j);
      uniforms.push_back(std::max(u, LEAST_UNIFORM));
    }
  }

  const Sampling& s_;
  const int64_t* region_;
  int64_t image_;
  double growth_ = 1;
  std::vector<double> weight_;
  std::vector<int64_t> positions_;
  std::vector<Region> regions_;
};

}  // namespace

void sample_patches(const Sampling& s, void (*log_in_place)(double* values, int64_t count)) {
  std::vector<std::unique_ptr<Image>> images(s.images);
  const int64_t grain = 1 + 4096 / s.positions;
  parallel_for(0, s.images, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) images[i] = std::make_unique<Image>(s, i);
  });
  std::vector<double> all;
  for (bool done = false; !done;) {
    // An image that has enough collects nothing.
    parallel_for(0, s.images, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) images[i]->collect();
    });
    all.clear();
    for (const auto& image : images) all.insert(all.end(), image->uniforms.begin(), image->uniforms.end());
    log_in_place(all.data(), int64_t(all.size()));
    auto from = all.begin();
    done = true;
    for (const auto& image : images) {
      std::copy_n(from, image->uniforms.size(), image->uniforms.begin());
      from += int64_t(image->uniforms.size());
      done = image->select() && done;
    }
  }
  parallel_for(0, s.images, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) images[i]->write();
  });
}

}  // namespace fastsketch
