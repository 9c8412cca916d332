// Squared distance of features, each position's channels over their length, and its gradient to the first of the two:
// fastsketch/nn/feature_distance.py. Included once for each instruction set.
//
// The channels of some neighbouring positions are copied next to each other, and stay in the cache until they are done
// with: in a map of 256x256 the values of one position all compete for the same few lines of it.

template <typename T>
struct UnitFeatures {
  static constexpr int vectors = 4, lanes = Lanes<T>::count, positions = vectors * lanes;

  explicit UnitFeatures(const FeatureMaps& s) : maps(s), values(s.channels * positions) {}

  // Positions from `first` on of an image's features; what lies behind the last is 0.
  void read(const T* image, int64_t first) {
    const int64_t count = std::min<int64_t>(positions, maps.positions - first);
    Vec<T> squares[vectors] = {};
    for (int64_t c = 0; c < maps.channels; ++c) {
      const T* from = image + c * maps.positions + first;
      T* to = values + c * positions;
      std::fill(std::copy_n(from, count, to), to + positions, T(0));
      for (int v = 0; v < vectors; ++v) squares[v] += unit(c, v) * unit(c, v);
    }
    for (int v = 0; v < vectors; ++v) {
      for (int i = 0; i < lanes; ++i) length[v][i] = std::sqrt(squares[v][i]);
      scale[v] = T(1) / (length[v] + T(maps.epsilon));
    }
    for (int64_t c = 0; c < maps.channels; ++c)  // rounded here, so that like features are at no distance
      for (int v = 0; v < vectors; ++v) put(c, v, unit(c, v) * scale[v]);
  }

  Vec<T> unit(int64_t channel, int v) const { return load<T>(values + channel * positions + v * lanes); }
  void put(int64_t channel, int v, Vec<T> x) { store<T>(values + channel * positions + v * lanes, x); }

  const FeatureMaps& maps;
  Scratch<T> values;  // [channels, positions], divided by their length
  Vec<T> length[vectors], scale[vectors];
};

// The sum of the distances of these positions.
template <typename T>
double distance(const UnitFeatures<T>& one, const UnitFeatures<T>& other) {
  using Unit = UnitFeatures<T>;
  Vec<T> squares[Unit::vectors] = {};
  for (int64_t c = 0; c < one.maps.channels; ++c)
    for (int v = 0; v < Unit::vectors; ++v) {
      const Vec<T> difference = one.unit(c, v) - other.unit(c, v);
      squares[v] += difference * difference;
    }
  double total = 0;
  for (const Vec<T>& square : squares) total += double(sum_lanes<T>(square));
  return total;
}

// `factor` times the gradient of that sum, in place of the values of `one`.
template <typename T>
void distance_gradient(UnitFeatures<T>& one, const UnitFeatures<T>& other, T factor) {
  using Unit = UnitFeatures<T>;
  Vec<T> across[Unit::vectors], along[Unit::vectors] = {};
  for (int64_t c = 0; c < one.maps.channels; ++c)
    for (int v = 0; v < Unit::vectors; ++v) along[v] += one.unit(c, v) * (one.unit(c, v) - other.unit(c, v));
  for (int v = 0; v < Unit::vectors; ++v) {
    across[v] = T(2) * factor * one.scale[v];
    along[v] = one.length[v] == T(0) ? Vec<T>{} : T(2) * factor * along[v] / one.length[v];
  }
  for (int64_t c = 0; c < one.maps.channels; ++c)
    for (int v = 0; v < Unit::vectors; ++v)
      one.put(c, v, across[v] * (one.unit(c, v) - other.unit(c, v)) - along[v] * one.unit(c, v));
}

// body(image, first, block, one, other) for each block of positions, once they are read.
template <typename T, typename Body>
void for_each_feature_block(const FeatureMaps& s, const T* one, const T* other, const Body& body) {
  const int64_t wide = UnitFeatures<T>::positions, blocks = (s.positions + wide - 1) / wide;
  const int64_t least = 65536 / (wide * s.channels) + 1;
  parallel_for(0, s.images * blocks, least, [&](int64_t begin, int64_t end) {
    UnitFeatures<T> mine(s), theirs(s);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t image = block / blocks, first = block % blocks * wide, offset = image * s.channels * s.positions;
      mine.read(one + offset, first);
      theirs.read(other + offset, first);
      body(image, first, block, mine, theirs);
    }
  });
}

template <typename T>
void feature_distance(const FeatureMaps& s, const T* one, const T* other, T* loss) {
  const int64_t blocks = (s.positions + UnitFeatures<T>::positions - 1) / UnitFeatures<T>::positions;
  Scratch<double> sums(s.images * blocks);  // added in one order, whoever made them
  for_each_feature_block<T>(s, one, other, [&](int64_t, int64_t, int64_t block, auto& mine, auto& theirs) {
    sums[block] = distance<T>(mine, theirs);
  });
  for (int64_t image = 0; image < s.images; ++image) {
    const double* from = sums + image * blocks;
    loss[image] = T(std::accumulate(from, from + blocks, 0.0) / double(s.positions));
  }
}

template <typename T>
void feature_distance_gradient(const FeatureMaps& s, const T* grad, const T* one, const T* other, T* grad_one) {
  for_each_feature_block<T>(s, one, other, [&](int64_t image, int64_t first, int64_t, auto& mine, auto& theirs) {
    distance_gradient<T>(mine, theirs, grad[image] / T(s.positions));
    const int64_t wide = UnitFeatures<T>::positions, count = std::min(wide, s.positions - first);
    for (int64_t c = 0; c < s.channels; ++c)
      std::copy_n(mine.values + c * wide, count, grad_one + (image * s.channels + c) * s.positions + first);
  });
}
