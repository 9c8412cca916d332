// Binomial blurs that halve a map, or double it, and their gradients [L: Zhang, Making convolutional networks
// shift-invariant again, ICML 2019]: rows are added up first, then the columns of that one row. A column has one value,
// or those of all channels.
// Included once for each instruction set.

template <typename T>
struct WeightedRow {
  int64_t row;
  T weight;
};

template <typename T, size_t N>
using WeightedRows = std::array<WeightedRow<T>, N>;

// to [count] = the rows of `from`, of so many values each, by their weights over `over`.
template <typename T, typename From, typename To, size_t N>
void add_rows(const From* from, int64_t count, const WeightedRows<T, N>& rows, T over, To* to) {
  constexpr int64_t lanes = Lanes<T>::count;
  const From* start[N];
  T weight[N];
  for (size_t n = 0; n < N; ++n) {
    start[n] = from + rows[n].row * count;
    weight[n] = rows[n].weight / over;
  }
  const auto sum = [&](const auto& value) {
    auto total = weight[0] * value(start[0]);
#pragma GCC unroll 4
    for (size_t n = 1; n < N; ++n) total += weight[n] * value(start[n]);
    return total;
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    store_values<T>(to + i, sum([i](const From* row) { return load_values<T>(row + i); }));
  for (; i < count; ++i) to[i] = To(sum([i](const From* row) { return T(row[i]); }));
}

// A column or row one outside, reflected; the border itself is not repeated.
inline int64_t reflected(int64_t i, int64_t size) { return i < 0 ? -i : i < size ? i : 2 * size - 2 - i; }

// Each blur: a side of `size` is read as read(size) rows and written as written(size); a written one is the sum of
// rows(i, size); across() does the same to the columns of one row, `sum`, which has room for one more on either side.

// By 1 2 1 to ⌈size / 2⌉.
template <typename T>
struct BlurDown {
  static int64_t read(int64_t size) { return size; }
  static int64_t written(int64_t size) { return (size + 1) / 2; }
  static WeightedRows<T, 3> rows(int64_t i, int64_t size) {
    return {{{reflected(2 * i - 1, size), 1}, {2 * i, 2}, {reflected(2 * i + 1, size), 1}}};
  }
  static void across(T* sum, int64_t width, T* line) {
    sum[-1] = sum[1];
    sum[width] = sum[width - 2];
    for (int64_t x = 0; x < (width + 1) / 2; ++x) line[x] = sum[2 * x - 1] + 2 * sum[2 * x] + sum[2 * x + 1];
  }
};

template <typename T>
struct BlurDownGradient {
  static int64_t read(int64_t size) { return (size + 1) / 2; }
  static int64_t written(int64_t size) { return size; }
  static WeightedRows<T, 2> rows(int64_t i, int64_t size) {
    const int64_t above = i / 2, below = above + 1;
    if (i % 2 == 0) return {{{above, 1}, {above, 1}}};
    // what was reflected comes from the first and last rows a second time
    const T from_above = T(1 + (i == 1)), from_below = T(1 + (i == size - 2));
    if (below == read(size)) return {{{above, from_above / 2}, {above, from_above / 2}}};
    return {{{above, from_above}, {below, from_below}}};
  }
  static void across(T* sum, int64_t width, T* line) {
    const int64_t columns = (width + 1) / 2;
    sum[columns] = 0;
    for (int64_t x = 0; x < columns; ++x) {
      line[2 * x] = 2 * sum[x];
      line[2 * x + 1] = sum[x] + sum[x + 1];
    }
    line[1] += sum[0];
    if (width % 2) line[width - 2] += sum[columns - 1];
  }
};

// By 1 3 3 1 to 2 size; what lies outside is as the border.
template <typename T>
struct BlurUp {
  static int64_t read(int64_t size) { return size; }
  static int64_t written(int64_t size) { return 2 * size; }
  static WeightedRows<T, 2> rows(int64_t i, int64_t size) {
    return {{{i / 2, 3}, {std::clamp<int64_t>(i % 2 ? i / 2 + 1 : i / 2 - 1, 0, size - 1), 1}}};
  }
  static void across(T* sum, int64_t width, T* line) {
    sum[-1] = sum[0];
    sum[width] = sum[width - 1];
    for (int64_t x = 0; x < width; ++x) {
      line[2 * x] = sum[x - 1] + 3 * sum[x];
      line[2 * x + 1] = 3 * sum[x] + sum[x + 1];
    }
  }
};

template <typename T>
struct BlurUpGradient {
  static int64_t read(int64_t size) { return 2 * size; }
  static int64_t written(int64_t size) { return size; }
  static WeightedRows<T, 4> rows(int64_t i, int64_t size) {
    const int64_t above = std::max<int64_t>(2 * i - 1, 0), below = std::min(2 * i + 2, 2 * size - 1);
    return {{{above, 1}, {2 * i, 3}, {2 * i + 1, 3}, {below, 1}}};
  }
  static void across(T* sum, int64_t width, T* line) {
    sum[-1] = sum[0];
    sum[2 * width] = sum[2 * width - 1];
    for (int64_t x = 0; x < width; ++x)
      line[x] = sum[2 * x - 1] + 3 * (sum[2 * x] + sum[2 * x + 1]) + sum[2 * x + 2];
  }
};

template <typename Kind, typename T, typename E>
void blur_maps(const Blur& s, const E* from, E* to) {
  const int64_t rows = Kind::written(s.height), columns = Kind::written(s.width);
  const int64_t length = Kind::read(s.width) * s.channels, most = std::max(length, columns * s.channels);
  parallel_for(0, s.maps * rows, 65536 / std::max<int64_t>(most, 1) + 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> sums(length + 2), line(columns + 1);  // a gradient of odd width writes one column more
    T* sum = sums + 1;
    for (int64_t n = begin; n < end; ++n) {
      const E* map = from + n / rows * Kind::read(s.height) * length;
      E* row = to + n * columns * s.channels;
      add_rows(map, length, Kind::rows(n % rows, s.height), T(16), sum);
      if (s.channels > 1) {
        for (int64_t x = 0; x < columns; ++x)
          add_rows(sum, s.channels, Kind::rows(x, s.width), T(1), row + x * s.channels);
      } else {
        Kind::across(sum, s.width, line);
        for (int64_t x = 0; x < columns; ++x) row[x] = E(line[x]);
      }
    }
  });
}

inline void blur(const Blur& s, const void* from, void* to) {
  with_elements(s.dtype, [&](auto element) {
    using E = decltype(element);
    using T = Compute<E>;
    const auto run = s.kind == Blur::down            ? blur_maps<BlurDown<T>, T, E>
                     : s.kind == Blur::down_gradient ? blur_maps<BlurDownGradient<T>, T, E>
                     : s.kind == Blur::up            ? blur_maps<BlurUp<T>, T, E>
                                                     : blur_maps<BlurUpGradient<T>, T, E>;
    run(s, static_cast<const E*>(from), static_cast<E*>(to));
  });
}
