// Squared distance of features, each position's channels over their length, and its gradient to the first of the two:
// fastsketch/nn/feature_distance.py. Included once for each instruction set.
//
// Of contiguous maps the channels of some neighbouring positions are copied next to each other, and stay in the cache
// until they are done with: in a map of 256x256 the values of one position all compete for the same few lines of it.
// Of channels-last maps one position is copied at a time.

template <typename E, bool last>
struct UnitFeatures {
  using T = Compute<E>;
  // Of contiguous maps four lines of the cache of each channel, one behind the other (of float32).
  static constexpr int lanes = Lanes<T>::count, vectors = last ? 4 : std::max(64 / lanes, 4), width = vectors * lanes;
  static constexpr int positions = last ? 1 : width;
  static constexpr int numbers = last ? 1 : vectors;  // vectors of one number a position

  explicit UnitFeatures(const FeatureMaps& s)
      : maps(s), steps(last ? (s.channels + width - 1) / width : s.channels), values(steps * width) {}

  // Positions from `first` on of an image's features; what lies behind the last position or channel is 0.
  void read(const E* image, int64_t first) {
    Vec<T> squares[vectors] = {};
    each([&](int64_t step, int v) {
      const int64_t count = std::min<int64_t>(there(step, first) - v * lanes, lanes);
      const E* from = image + place(step, first) + v * lanes;
      Vec<T> x = {};
      if (count == lanes)
        x = load_values<T>(from);
      else
        for (int64_t i = 0; i < count; ++i) x[i] = T(from[i]);
      put(step, v, x);
      squares[v] += x * x;
    });
    total(squares);
    for (int n = 0; n < numbers; ++n) {
      for (int i = 0; i < lanes; ++i) squares[n][i] = std::sqrt(squares[n][i]);
      length[n] = squares[n];
      scale[n] = T(1) / (length[n] + T(maps.epsilon));
    }
    // Rounded here, so that like features are at no distance.
    each([&](int64_t step, int v) { put(step, v, unit(step, v) * scale[v % numbers]); });
  }

  void write(E* image, int64_t first) const {
    each([&](int64_t step, int v) {
      const int64_t count = std::min<int64_t>(there(step, first) - v * lanes, lanes);
      E* to = image + place(step, first) + v * lanes;
      const Vec<T> x = unit(step, v);
      if (count == lanes)
        store_values<T>(to, x);
      else
        for (int64_t i = 0; i < count; ++i) to[i] = E(x[i]);
    });
  }

  // Sums of lanes become sums of positions.
  static void total(Vec<T>* sums) {
    if constexpr (last) sums[0] = broadcast<T>(sum(sums));
  }

  static T sum(const Vec<T>* sums) {
    Vec<T> all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int v = 4; v < vectors; v += 4) all += (sums[v] + sums[v + 1]) + (sums[v + 2] + sums[v + 3]);
    return sum_by_halves<T>(all);
  }

  // body(step, v) for each vector of values.
  template <typename Body>
  void each(const Body& body) const {
    for (int64_t step = 0; step < steps; ++step)
      for (int v = 0; v < vectors; ++v) body(step, v);
  }

  // Where a step's values lie in an image, and how many are there.
  int64_t place(int64_t step, int64_t first) const {
    return last ? first * maps.channels + step * width : step * maps.positions + first;
  }
  int64_t there(int64_t step, int64_t first) const {
    return last ? maps.channels - step * width : maps.positions - first;
  }

  Vec<T> unit(int64_t step, int v) const { return load<T>(values + step * width + v * lanes); }
  void put(int64_t step, int v, Vec<T> x) { store<T>(values + step * width + v * lanes, x); }

  const FeatureMaps& maps;
  const int64_t steps;  // each a channel of `width` positions, or `width` channels of a position
  Scratch<T> values;    // [steps, width], divided by their length
  Vec<T> length[numbers], scale[numbers];
};

// The sum of the distances of these positions.
template <typename Unit>
double distance(const Unit& one, const Unit& other) {
  using T = typename Unit::T;
  Vec<T> squares[Unit::vectors] = {};
  one.each([&](int64_t step, int v) {
    const Vec<T> difference = one.unit(step, v) - other.unit(step, v);
    squares[v] += difference * difference;
  });
  return double(Unit::sum(squares));
}

// `factor` times the gradient of that sum, in place of the values of `one`.
template <typename Unit, typename T>
void distance_gradient(Unit& one, const Unit& other, T factor) {
  Vec<T> across[Unit::numbers], along[Unit::vectors] = {};
  one.each([&](int64_t step, int v) { along[v] += one.unit(step, v) * (one.unit(step, v) - other.unit(step, v)); });
  Unit::total(along);
  for (int n = 0; n < Unit::numbers; ++n) {
    across[n] = T(2) * factor * one.scale[n];
    along[n] = one.length[n] == T(0) ? Vec<T>{} : T(2) * factor * along[n] / one.length[n];
  }
  one.each([&](int64_t step, int v) {
    const int n = v % Unit::numbers;
    one.put(step, v, across[n] * (one.unit(step, v) - other.unit(step, v)) - along[n] * one.unit(step, v));
  });
}

template <typename E, bool last>
void feature_distance_of(const FeatureMaps& s) {
  using Unit = UnitFeatures<E, last>;
  using T = typename Unit::T;
  const T* grad = static_cast<const T*>(s.grad);
  const int64_t blocks = (s.positions + Unit::width - 1) / Unit::width;
  const Scratch<double> sums(s.images * blocks);  // added in one order, whoever made them
  parallel_for(0, s.images * blocks, 65536 / (Unit::width * s.channels) + 1, [&](int64_t begin, int64_t end) {
    Unit one(s), other(s);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t image = block / blocks, offset = image * s.channels * s.positions;
      const int64_t first = block % blocks * Unit::width, behind = std::min(first + Unit::width, s.positions);
      sums[block] = 0;
      for (int64_t position = first; position < behind; position += Unit::positions) {
        one.read(static_cast<const E*>(s.features) + offset, position);
        other.read(static_cast<const E*>(s.target) + offset, position);
        if (grad) {
          distance_gradient(one, other, grad[image] / T(s.positions));
          one.write(static_cast<E*>(s.out) + offset, position);
        } else {
          sums[block] += distance(one, other);
        }
      }
    }
  });
  if (grad) return;
  for (int64_t image = 0; image < s.images; ++image) {
    const double* from = sums + image * blocks;
    static_cast<T*>(s.out)[image] = T(std::accumulate(from, from + blocks, 0.0) / double(s.positions));
  }
}

inline void feature_distance(const FeatureMaps& s) {
  with_elements(s.dtype, [&](auto element) {
    using E = decltype(element);
    s.channels_last ? feature_distance_of<E, true>(s) : feature_distance_of<E, false>(s);
  });
}
