// 3×3 convolutions by F(4×4, 3×3) [L: Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016; the
// matrices are theirs]: a tile of 4×4 outputs, 144 multiplications a pair of channels otherwise, takes 36. Tiles of
// 6×6 inputs and the kernels are carried into a space where the convolution is a product of channels at each of 36 points.
// Included once for each instruction set.
//
// Vectors run over channels. A thread takes some rows of tiles at a time, all channels of them, so that what lies between
// the transforms stays in its cache. A value does not depend on which thread makes it.

constexpr int TILE = 4, REACH = 6, POINTS = REACH * REACH;
constexpr int64_t TILES_AT_A_TIME = 96;
constexpr int64_t TILES_OF_A_GRADIENT = 1024;  // whose transforms are kept at a time for the gradient of the kernels

template <typename V>
inline void input_transform(const V* d, int64_t step, V* t) {
  const V a = d[0], b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step], g = d[5 * step];
  t[0] = 4 * a - 5 * c + f;
  t[1] = (f - 4 * c) + (e - 4 * b);
  t[2] = (f - 4 * c) - (e - 4 * b);
  t[3] = (f - c) + 2 * (e - b);
  t[4] = (f - c) - 2 * (e - b);
  t[5] = 4 * b - 5 * e + g;
}

template <typename V>
inline void kernel_transform(const V* g, int64_t step, V* t) {
  const V a = g[0], b = g[step], c = g[2 * step];
  const V outer = (a + c) / 6, far = (a + 4 * c) / 24;
  t[0] = a / 4;
  t[1] = -outer - b / 6;
  t[2] = b / 6 - outer;
  t[3] = far + b / 12;
  t[4] = far - b / 12;
  t[5] = c;
}

template <typename V>
inline void output_transform(const V* m, int64_t step, V* t) {
  const V sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
  const V sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
  t[0] = m[0] + sum1 + sum2;
  t[1] = difference1 + 2 * difference2;
  t[2] = sum1 + 4 * sum2;
  t[3] = difference1 + 8 * difference2 + m[5 * step];
}

// The transposes of the last two, for gradients.
template <typename V>
inline void output_gradient_transform(const V* y, int64_t step, V* t) {
  const V a = y[0], b = y[step], c = y[2 * step], d = y[3 * step];
  t[0] = a;
  t[1] = (a + c) + (b + d);
  t[2] = (a + c) - (b + d);
  t[3] = (a + 4 * c) + 2 * (b + 4 * d);
  t[4] = (a + 4 * c) - 2 * (b + 4 * d);
  t[5] = d;
}

template <typename V>
inline void kernel_gradient_transform(const V* u, int64_t step, V* t) {
  const V sum1 = u[step] + u[2 * step], difference1 = u[2 * step] - u[step];
  const V sum2 = u[3 * step] + u[4 * step], difference2 = u[3 * step] - u[4 * step];
  t[0] = u[0] / 4 - sum1 / 6 + sum2 / 24;
  t[1] = difference1 / 6 + difference2 / 12;
  t[2] = sum2 / 6 - sum1 / 6 + u[5 * step];
}

// matrix · tile · matrixᵀ: `transform` on the columns, then on the rows. from [FROM, FROM] -> to [TO, TO].
template <int FROM, int TO, typename V, typename Transform>
inline void both_sides(const V* from, V* to, const Transform& transform) {
  V half[FROM * TO];  // [column, row]
  for (int column = 0; column < FROM; ++column) transform(from + column, FROM, half + column * TO);
  for (int row = 0; row < TO; ++row) transform(half + row, TO, to + row * TO);
}

// From one point's matrix to the next. They are written and read side by side, 36 at a time: a power of two between them
// would send all to the same few places of the cache, so a line is left free.
template <typename T>
int64_t point_stride(int64_t rows, int64_t columns) {
  return rows * columns + 64 / int64_t(sizeof(T));
}

// Rows of tiles of all images, one after the other.
struct TileGrid {
  explicit TileGrid(const Conv3x3Shape& s)
      : down((s.out_height() + TILE - 1) / TILE), across((s.out_width() + TILE - 1) / TILE), rows(s.images * down) {}
  int64_t down, across, rows;
  int64_t rows_at_a_time() const {
    const int64_t cached = std::max<int64_t>(1, TILES_AT_A_TIME / across);
    return std::min(cached, (rows + num_threads() - 1) / num_threads());
  }
};

// Some rows of an image's channels, channels last: strip [REACH or TILE, width, channels rounded up]. `top` and `left` may
// lie outside the image, as what is asked for may at its other ends: zeros stand there.
template <typename T>
void load_strip(
    const T* image, int64_t channels, int64_t height, int64_t width, int64_t top, int64_t left, int64_t rows,
    int64_t columns, T* strip) {
  const int64_t padded = round_up(channels, panel_width<T>());
  const int64_t first = std::max<int64_t>(0, -left), last = std::min(columns, width - left);
  for (int64_t r = 0; r < rows; ++r) {
    T* to = strip + r * columns * padded;
    const int64_t y = top + r;
    if (y < 0 || y >= height || first > 0 || last < columns || padded > channels) std::fill_n(to, columns * padded, T(0));
    if (y < 0 || y >= height) continue;
    for (int64_t c = 0; c < channels; c += 8) {  // eight at a time: whole cache lines of the strip before they leave
      const int64_t count = std::min<int64_t>(8, channels - c);
      const T* from = image + (c * height + y) * width + left;
      if (count == 8)
        for (int64_t x = first; x < last; ++x)
          for (int64_t n = 0; n < 8; ++n) to[x * padded + c + n] = from[n * height * width + x];
      else
        for (int64_t x = first; x < last; ++x)
          for (int64_t n = 0; n < count; ++n) to[x * padded + c + n] = from[n * height * width + x];
    }
  }
}

// Tiles of a strip, FROM×FROM each TILE apart, transformed: to [POINTS, tiles, channels rounded up], from tile `at` on.
template <int FROM, typename T, typename Transform>
void transform_strip(
    const T* strip, int64_t columns, int64_t across, int64_t padded, T* to, int64_t tiles, int64_t at,
    const Transform& transform) {
  const int64_t stride = point_stride<T>(tiles, padded);
  for (int64_t x = 0; x < across; ++x)
    for (int64_t c = 0; c < padded; c += Lanes<T>::count) {
      Vec<T> tile[FROM * FROM], points[POINTS];
      for (int r = 0; r < FROM; ++r)
        for (int i = 0; i < FROM; ++i) tile[r * FROM + i] = load<T>(strip + (r * columns + x * TILE + i) * padded + c);
      both_sides<FROM, REACH>(tile, points, transform);
      for (int64_t n = 0; n < POINTS; ++n) store<T>(to + n * stride + (at + x) * padded + c, points[n]);
    }
}

template <typename T>
void transform_inputs(
    const Conv3x3Shape& s, const T* input, const TileGrid& grid, int64_t row, T* strip, T* to, int64_t tiles,
    int64_t at) {
  const int64_t columns = grid.across * TILE + 2;
  const T* image = input + row / grid.down * s.channels * s.height * s.width;
  load_strip<T>(
      image, s.channels, s.height, s.width, row % grid.down * TILE - s.padding, -s.padding, REACH, columns, strip);
  transform_strip<REACH, T>(
      strip, columns, grid.across, round_up(s.channels, panel_width<T>()), to, tiles, at,
      [](const Vec<T>* d, int64_t step, Vec<T>* t) { input_transform(d, step, t); });
}

// The kernels in the space of the products, packed for them: to [POINTS, filters rounded up / panel, channels, panel].
// Some channels at a time, so that each matrix is written in runs: 36 lines apart from each other would be slow.
template <typename T>
void transform_kernels(const Conv3x3Shape& s, const T* kernel, T* to) {
  constexpr int64_t width = panel_width<T>(), run = 32;
  const int64_t filters = round_up(s.filters, width), stride = point_stride<T>(filters, s.channels);
  parallel_for(0, filters / width, std::max<int64_t>(1, 4096 / (width * s.channels)), [&](int64_t begin, int64_t end) {
    Scratch<T> block(POINTS * run * width);
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t c0 = 0; c0 < s.channels; c0 += run) {
        const int64_t count = std::min(run, s.channels - c0);
        for (int64_t c = c0; c < c0 + count; ++c) {
          T taps[9][width] = {};
          for (int64_t f = 0; f < std::min(width, s.filters - panel * width); ++f) {
            const int64_t filter = panel * width + f;
            const T* from = kernel + (s.transposed ? c * s.filters + filter : filter * s.channels + c) * 9;
            for (int n = 0; n < 9; ++n) taps[n][f] = from[s.transposed ? 8 - n : n];
          }
          for (int64_t v = 0; v < width; v += Lanes<T>::count) {
            Vec<T> g[9], points[POINTS];
            for (int n = 0; n < 9; ++n) g[n] = load<T>(taps[n] + v);
            both_sides<3, REACH>(
                g, points, [](const Vec<T>* x, int64_t step, Vec<T>* t) { kernel_transform(x, step, t); });
            for (int n = 0; n < POINTS; ++n) store<T>(block + (n * run + c - c0) * width + v, points[n]);
          }
        }
        for (int n = 0; n < POINTS; ++n)
          std::copy_n(block + n * run * width, count * width, to + n * stride + (panel * s.channels + c0) * width);
      }
  });
}

// A row of tiles carried back: products [POINTS, tiles, filters rounded up] from tile `at` on -> four rows of all filters.
template <typename T>
void transform_outputs(
    const Conv3x3Shape& s, const T* products, int64_t tiles, int64_t at, const TileGrid& grid, int64_t row,
    const T* bias, T* rows, T* output) {
  constexpr int64_t width = panel_width<T>();
  const int64_t padded = round_up(s.filters, width), height = s.out_height(), columns = s.out_width();
  const int64_t top = row % grid.down * TILE, stride = grid.across * TILE, point = point_stride<T>(tiles, padded);
  T* image = output + row / grid.down * s.filters * height * columns;
  for (int64_t f = 0; f < s.filters; f += width) {
    for (int64_t x = 0; x < grid.across; ++x)
      for (int64_t v = 0; v < width; v += Lanes<T>::count) {
        Vec<T> points[POINTS], tile[TILE * TILE];
        for (int64_t n = 0; n < POINTS; ++n) points[n] = load<T>(products + n * point + (at + x) * padded + f + v);
        both_sides<REACH, TILE>(
            points, tile, [](const Vec<T>* m, int64_t step, Vec<T>* t) { output_transform(m, step, t); });
        for (int64_t n = 0; n < TILE * TILE; ++n)
          store<T>(rows + (n / TILE * stride + x * TILE + n % TILE) * width + v, tile[n]);
      }
    for (int64_t n = 0; n < std::min(width, s.filters - f); ++n) {
      const T add = bias ? bias[f + n] : T(0);
      for (int64_t r = 0; r < std::min<int64_t>(TILE, height - top); ++r) {
        T* to = image + ((f + n) * height + top + r) * columns;
        const T* from = rows + r * stride * width + n;
        for (int64_t x = 0; x < columns; ++x) to[x] = from[x * width] + add;
      }
    }
  }
}

template <typename T>
void conv3x3(const Conv3x3Shape& s, const T* input, const T* kernel, const T* bias, T* output) {
  const int64_t channels = round_up(s.channels, panel_width<T>()), filters = round_up(s.filters, panel_width<T>());
  const TileGrid grid(s);
  Scratch<T> kernels(POINTS * point_stride<T>(s.channels, filters));
  transform_kernels<T>(s, kernel, kernels);
  const int64_t rows = grid.rows_at_a_time(), parts = (grid.rows + rows - 1) / rows, most = rows * grid.across;
  for_each_turn(parts, [&](const auto& turn) {
    Scratch<T> strip(REACH * (grid.across * TILE + 2) * channels), points(POINTS * point_stride<T>(most, channels));
    Scratch<T> products(POINTS * point_stride<T>(most, filters)), out(TILE * TILE * grid.across * panel_width<T>());
    for (int64_t part = turn(); part < parts; part = turn()) {
      const int64_t first = part * rows, count = std::min(rows, grid.rows - first), tiles = count * grid.across;
      for (int64_t r = 0; r < count; ++r)
        transform_inputs<T>(s, input, grid, first + r, strip, points, tiles, r * grid.across);
      for (int64_t n = 0; n < POINTS; ++n)
        multiply<T>(
            points + n * point_stride<T>(tiles, channels), channels, 1, tiles,
            kernels + n * point_stride<T>(s.channels, filters), s.channels, filters,
            products + n * point_stride<T>(tiles, filters), filters, false);
      for (int64_t r = 0; r < count; ++r)
        transform_outputs<T>(s, products, tiles, r * grid.across, grid, first + r, bias, out, output);
    }
  });
}

// Gradient of the kernels [filters, channels, 3, 3] for that of the output.
template <typename T>
void conv3x3_kernel_gradient(const Conv3x3Shape& s, const T* input, const T* grad_output, T* grad_kernel) {
  const int64_t channels = round_up(s.channels, panel_width<T>()), filters = round_up(s.filters, panel_width<T>());
  const TileGrid grid(s);
  const int64_t rows = std::min(grid.rows, std::max<int64_t>(1, TILES_OF_A_GRADIENT / grid.across));
  const int64_t most = rows * grid.across, sum_stride = point_stride<T>(s.filters, channels);
  Scratch<T> points(POINTS * point_stride<T>(most, channels)), grads(POINTS * point_stride<T>(most, filters));
  Scratch<T> sums(POINTS * sum_stride);
  for (int64_t first = 0; first < grid.rows; first += rows) {
    const int64_t count = std::min(rows, grid.rows - first), tiles = count * grid.across;
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> strip(REACH * (grid.across * TILE + 2) * std::max(channels, filters));
      for (int64_t r = begin; r < end; ++r) {
        const int64_t row = first + r, columns = grid.across * TILE;
        transform_inputs<T>(s, input, grid, row, strip, points, tiles, r * grid.across);
        const T* image = grad_output + row / grid.down * s.filters * s.out_height() * s.out_width();
        load_strip<T>(
            image, s.filters, s.out_height(), s.out_width(), row % grid.down * TILE, 0, TILE, columns, strip);
        transform_strip<TILE, T>(
            strip, columns, grid.across, filters, grads, tiles, r * grid.across,
            [](const Vec<T>* y, int64_t step, Vec<T>* t) { output_gradient_transform(y, step, t); });
      }
    });
    for_each_item(POINTS, true, [&](int64_t n) {
      multiply_columns<T>(
          grads + n * point_stride<T>(tiles, filters), filters, points + n * point_stride<T>(tiles, channels), channels,
          tiles, 0, s.filters, channels, sums + n * sum_stride, channels, first > 0);
    });
  }
  parallel_for(0, s.filters, 1, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f)
      for (int64_t c = 0; c < s.channels; c += Lanes<T>::count) {
        Vec<T> u[POINTS], taps[9];
        for (int64_t n = 0; n < POINTS; ++n) u[n] = load<T>(sums + n * sum_stride + f * channels + c);
        both_sides<REACH, 3>(
            u, taps, [](const Vec<T>* x, int64_t step, Vec<T>* t) { kernel_gradient_transform(x, step, t); });
        T* to = grad_kernel + (f * s.channels + c) * 9;
        for (int64_t n = 0; n < std::min<int64_t>(Lanes<T>::count, s.channels - c); ++n)
          for (int tap = 0; tap < 9; ++tap) to[n * 9 + tap] = taps[tap][int(n)];
      }
  });
}
