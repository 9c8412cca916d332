// Binomial blurs that halve a map, or double it, and their gradients [L: Zhang, Making convolutional networks
// shift-invariant again, ICML 2019]: rows are added up first, then the columns of that one row.
// Included once for each instruction set.

template <typename T>
struct BlurRow {
  explicit BlurRow(int64_t most) : sum_(most + 2), line_(2 * most + 2) {}
  T* sum() const { return sum_ + 1; }  // has a column on either side
  T* line() const { return line_; }

 private:
  Scratch<T> sum_, line_;
};

template <typename T>
struct WeightedRow {
  int64_t row;
  T weight;  // 0: the row is not looked at
};

// sum [columns] = the rows of `map`, by their weights.
template <typename T, typename E, size_t N>
void add_rows(const E* map, int64_t columns, const WeightedRow<T> (&rows)[N], T* sum) {
  bool first = true;
  for (const auto& [row, weight] : rows) {
    if (weight == T(0)) continue;
    const E* from = map + row * columns;
    const T w = weight;
    if (first)
      for (int64_t x = 0; x < columns; ++x) sum[x] = w * T(from[x]);
    else
      for (int64_t x = 0; x < columns; ++x) sum[x] += w * T(from[x]);
    first = false;
  }
}

template <typename T, typename E>
void put_row(const T* line, int64_t columns, E* to) {
  for (int64_t x = 0; x < columns; ++x) to[x] = E(line[x]);
}

// A column or row one outside, reflected; the border itself is not repeated.
inline int64_t reflected(int64_t i, int64_t size) { return i < 0 ? -i : i < size ? i : 2 * size - 2 - i; }

// A map [height, width] -> [⌈height / 2⌉, ⌈width / 2⌉], by 1 2 1 each way.
template <typename T, typename E>
void blur_down(const E* map, int64_t height, int64_t width, const BlurRow<T>& room, E* to) {
  const int64_t columns = (width + 1) / 2;
  T *sum = room.sum(), *line = room.line();
  for (int64_t row = 0; row < (height + 1) / 2; ++row) {
    add_rows<T>(
        map, width,
        {{reflected(2 * row - 1, height), T(1)}, {2 * row, T(2)}, {reflected(2 * row + 1, height), T(1)}}, sum);
    sum[-1] = sum[1];
    sum[width] = sum[width - 2];
    for (int64_t x = 0; x < columns; ++x) line[x] = (sum[2 * x - 1] + 2 * sum[2 * x] + sum[2 * x + 1]) / 16;
    put_row(line, columns, to + row * columns);
  }
}

// The gradient of [height, width] for that of [⌈height / 2⌉, ⌈width / 2⌉].
template <typename T, typename E>
void blur_down_gradient(const E* grad, int64_t height, int64_t width, const BlurRow<T>& room, E* to) {
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
  T *sum = room.sum(), *line = room.line();
  for (int64_t row = 0; row < height; ++row) {
    const int64_t above = row / 2, below = above + 1;
    if (row % 2 == 0) {
      add_rows<T>(grad, columns, {{above, T(2)}}, sum);
    } else {  // what was reflected comes from the first and last rows a second time
      const T from_below = below == rows ? T(0) : T(1 + (row == height - 2));
      add_rows<T>(grad, columns, {{above, T(1 + (row == 1))}, {below, from_below}}, sum);
    }
    sum[columns] = 0;
    for (int64_t x = 0; x < columns; ++x) {
      line[2 * x] = 2 * sum[x] / 16;
      line[2 * x + 1] = (sum[x] + sum[x + 1]) / 16;
    }
    line[1] += sum[0] / 16;
    if (width % 2) line[width - 2] += sum[columns - 1] / 16;
    put_row(line, width, to + row * width);
  }
}

// A map [height, width] -> [2 height, 2 width], by 1 3 3 1 each way; what lies outside is as the border.
template <typename T, typename E>
void blur_up(const E* map, int64_t height, int64_t width, const BlurRow<T>& room, E* to) {
  T *sum = room.sum(), *line = room.line();
  for (int64_t row = 0; row < 2 * height; ++row) {
    const int64_t other = std::clamp<int64_t>(row % 2 ? row / 2 + 1 : row / 2 - 1, 0, height - 1);
    add_rows<T>(map, width, {{row / 2, T(3)}, {other, T(1)}}, sum);
    sum[-1] = sum[0];
    sum[width] = sum[width - 1];
    for (int64_t x = 0; x < width; ++x) {
      line[2 * x] = (sum[x - 1] + 3 * sum[x]) / 16;
      line[2 * x + 1] = (3 * sum[x] + sum[x + 1]) / 16;
    }
    put_row(line, 2 * width, to + row * 2 * width);
  }
}

// The gradient of [height, width] for that of [2 height, 2 width].
template <typename T, typename E>
void blur_up_gradient(const E* grad, int64_t height, int64_t width, const BlurRow<T>& room, E* to) {
  T *sum = room.sum(), *line = room.line();
  for (int64_t row = 0; row < height; ++row) {
    const int64_t above = std::max<int64_t>(2 * row - 1, 0), below = std::min(2 * row + 2, 2 * height - 1);
    add_rows<T>(grad, 2 * width, {{above, T(1)}, {2 * row, T(3)}, {2 * row + 1, T(3)}, {below, T(1)}}, sum);
    sum[-1] = sum[0];
    sum[2 * width] = sum[2 * width - 1];
    for (int64_t x = 0; x < width; ++x)
      line[x] = (sum[2 * x - 1] + 3 * (sum[2 * x] + sum[2 * x + 1]) + sum[2 * x + 2]) / 16;
    put_row(line, width, to + row * width);
  }
}

template <typename E>
void blur_maps(const Blur& s, const void* from, void* to) {
  using T = Compute<E>;
  const bool down = s.kind == Blur::down || s.kind == Blur::down_gradient;
  const int64_t full = s.height * s.width;
  const int64_t other = down ? (s.height + 1) / 2 * ((s.width + 1) / 2) : 4 * full;
  const bool gradient = s.kind == Blur::down_gradient || s.kind == Blur::up_gradient;
  const int64_t read = gradient ? other : full, written = gradient ? full : other;
  const auto blur = s.kind == Blur::down            ? blur_down<T, E>
                    : s.kind == Blur::down_gradient ? blur_down_gradient<T, E>
                    : s.kind == Blur::up            ? blur_up<T, E>
                                                    : blur_up_gradient<T, E>;
  parallel_for(0, s.maps, 65536 / std::max(full, other) + 1, [&](int64_t begin, int64_t end) {
    const BlurRow<T> room(2 * s.width);
    for (int64_t n = begin; n < end; ++n)
      blur(static_cast<const E*>(from) + n * read, s.height, s.width, room, static_cast<E*>(to) + n * written);
  });
}

inline void blur(const Blur& s, const void* from, void* to) {
  with_elements(s.dtype, [&](auto element) { blur_maps<decltype(element)>(s, from, to); });
}
