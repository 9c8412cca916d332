// Tiles of inputs and of the output's gradient, carried into the space where Winograd's convolution is a product
// [L: Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016]. Tiles of 6×6 inputs serve kernels of
// 3×3, for 4×4 outputs, and of 4×4, for 3×3 outputs: polynomials' values at 0, 1, -1, 2, -2 and ∞ in either case, and for
// 3×3 their matrices. Included once for each instruction set.

constexpr int REACH = 6, POINTS = REACH * REACH;
template <int K>  // the kernel's side
constexpr int TILE = REACH + 1 - K;
template <int K>
constexpr int TAPS = K * K;

// Down one column: the transform of an input's tile, and of what the products leave of an output's.
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

template <int K, typename V>
inline void output_transform(const V* m, int64_t step, V* t) {
  const V sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
  const V sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
  t[0] = m[0] + sum1 + sum2;
  t[1] = difference1 + 2 * difference2;
  t[2] = sum1 + 4 * sum2;
  if constexpr (K == 3) t[3] = difference1 + 8 * difference2;
  t[TILE<K> - 1] += m[5 * step];
}

// Transposes, for gradients: of these two, and of the kernels'.
template <typename V>
inline void input_gradient_transform(const V* m, int64_t step, V* t) {
  const V a = m[0], f = m[5 * step];
  const V sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
  const V sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
  t[0] = 4 * a;
  t[1] = 4 * (f - difference1) - 2 * difference2;
  t[2] = -5 * a - 4 * sum1 - sum2;
  t[3] = difference1 + 2 * difference2 - 5 * f;
  t[4] = a + sum1 + sum2;
  t[5] = f;
}

template <int K, typename V>
inline void output_gradient_transform(const V* y, int64_t step, V* t) {
  const V a = y[0], c = y[2 * step];
  V odd1 = y[step], odd2 = y[step];
  if constexpr (K == 3) {
    odd1 += y[3 * step];
    odd2 += 4 * y[3 * step];
  }
  t[0] = a;
  t[1] = (a + c) + odd1;
  t[2] = (a + c) - odd1;
  t[3] = (a + 4 * c) + 2 * odd2;
  t[4] = (a + 4 * c) - 2 * odd2;
  t[5] = y[(TILE<K> - 1) * step];
}

template <int K, typename V>
inline void kernel_gradient_transform(const V* u, int64_t step, V* t) {
  const V sum1 = u[step] + u[2 * step], difference1 = u[2 * step] - u[step];
  const V sum2 = u[3 * step] + u[4 * step], difference2 = u[3 * step] - u[4 * step];
  t[0] = u[0] / 4 - sum1 / 6 + sum2 / 24;
  t[1] = difference1 / 6 + difference2 / 12;
  t[2] = sum2 / 6 - sum1 / 6;
  if constexpr (K == 4) t[3] = difference1 / 6 + difference2 / 3;
  t[K - 1] += u[5 * step];
}

// The kernels' transform at a point (one of REACH), of tap i.
template <int K>
constexpr double kernel_transform(int point, int i) {
  constexpr double at[] = {0, 1, -1, 2, -2}, factor[] = {1. / 4, -1. / 6, -1. / 6, 1. / 24, 1. / 24};
  if (point == REACH - 1) return i == K - 1;
  double power = 1;
  for (int n = 0; n < i; ++n) power *= at[point];
  return factor[point] * power;
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
  TileGrid(const ConvShape& s, int64_t tile)
      : down((s.out_height() + tile - 1) / tile), across((s.out_width() + tile - 1) / tile), rows(s.images * down) {}
  int64_t down, across, rows;
  // Rows of about so many tiles at most, in even parts.
  int64_t rows_within(int64_t tiles) const {
    const int64_t most = std::min(rows, std::max<int64_t>(1, tiles / across)), parts = (rows + most - 1) / most;
    return (rows + parts - 1) / parts;
  }
};

// Row or column `i` of the padded input in the input, of `size`; -1 where zeros stand.
inline int64_t source_of(int64_t i, int64_t size, const ConvShape& s) {
  if (i >= 0 && i < size) return i;
  if (!s.reflect || i < -s.padding || i >= size + s.padding) return -1;
  return i < 0 ? -i : 2 * size - 2 - i;
}

// Squares of channels and pixels, turned round in registers: `pixels` of so many channels as a vector has, from channels
// first (`channel` apart) to channels last (`pixel` apart).
template <typename T>
void to_channels_last(const T* from, int64_t channel, int64_t pixels, T* to, int64_t pixel) {
  constexpr int lanes = Lanes<T>::count;
  int64_t x = 0;
  for (; x + lanes <= pixels; x += lanes) {
    Vec<T> square[lanes];
#pragma GCC unroll 16
    for (int n = 0; n < lanes; ++n) square[n] = load<T>(from + n * channel + x);
    transpose<T>(square);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) store<T>(to + (x + i) * pixel, square[i]);
  }
  for (; x < pixels; ++x)
    for (int n = 0; n < lanes; ++n) to[x * pixel + n] = from[n * channel + x];
}

// The way back, of the first `channels` of them: put(n, place, values) takes a vector of channel n's pixels, or one.
template <typename T, typename Put>
void to_channels_first(const T* from, int64_t pixel, int64_t pixels, int64_t channels, const Put& put) {
  constexpr int lanes = Lanes<T>::count;
  int64_t x = 0;
  for (; x + lanes <= pixels; x += lanes) {
    Vec<T> square[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) square[i] = load<T>(from + (x + i) * pixel);
    transpose<T>(square);
    for (int64_t n = 0; n < channels; ++n) put(n, x, square[n]);
  }
  for (; x < pixels; ++x)
    for (int64_t n = 0; n < channels; ++n) put(n, x, from[x * pixel + n]);
}

// Some rows of an image [channels, height, width], channels last: strip [rows, columns, channels rounded up], from row
// `top` and column `left` on. What lies outside is 0, or, of an input to be reflected, its reflection.
template <typename T>
void load_strip(
    const T* image, int64_t channels, int64_t height, int64_t width, int64_t top, int64_t left, int64_t rows,
    int64_t columns, const ConvShape& s, T* strip) {
  constexpr int64_t together = Lanes<T>::count;
  const int64_t padded = round_up(channels, panel_width<T>());
  const int64_t first = std::max<int64_t>(0, -left), last = std::min(columns, width - left);
  for (int64_t r = 0; r < rows; ++r) {
    T* to = strip + r * columns * padded;
    const int64_t y = source_of(top + r, height, s);
    if (y < 0 || first > 0 || last < columns || padded > channels) std::fill_n(to, columns * padded, T(0));
    if (y < 0) continue;
    for (int64_t c = 0; c < channels; c += together) {
      const int64_t count = std::min(together, channels - c);
      const T* from = image + (c * height + y) * width + left;
      if (count == together)
        to_channels_last<T>(from + first, height * width, last - first, to + first * padded + c, padded);
      else
        for (int64_t x = first; x < last; ++x)
          for (int64_t n = 0; n < count; ++n) to[x * padded + c + n] = from[n * height * width + x];
    }
    for (int64_t edge = 1; s.reflect && edge <= s.padding; ++edge)
      for (const int64_t x : {-edge, width - 1 + edge}) {
        const int64_t place = x - left;
        if (place >= 0 && place < columns)
          std::copy_n(to + (source_of(x, width, s) - left) * padded, padded, to + place * padded);
      }
  }
}

// Tiles of a strip, FROM×FROM each `TILE` apart, transformed: to [POINTS, tiles, channels rounded up], from tile `at` on.
template <int K, int FROM, typename T, typename Transform>
void transform_strip(
    const T* strip, int64_t columns, int64_t across, int64_t padded, T* to, int64_t tiles, int64_t at,
    const Transform& transform) {
  const int64_t stride = point_stride<T>(tiles, padded);
  for (int64_t x = 0; x < across; ++x)
    for (int64_t c = 0; c < padded; c += Lanes<T>::count) {
      Vec<T> tile[FROM * FROM], points[POINTS];
      for (int r = 0; r < FROM; ++r)
        for (int i = 0; i < FROM; ++i) tile[r * FROM + i] = load<T>(strip + (r * columns + x * TILE<K> + i) * padded + c);
      both_sides<FROM, REACH>(tile, points, transform);
      for (int64_t n = 0; n < POINTS; ++n) store<T>(to + n * stride + (at + x) * padded + c, points[n]);
    }
}

template <int K, typename T>
void transform_inputs(
    const ConvShape& s, const T* input, const TileGrid& grid, int64_t row, T* strip, T* to, int64_t tiles,
    int64_t at) {
  const int64_t columns = grid.across * TILE<K> + K - 1;
  const T* image = input + row / grid.down * s.channels * s.height * s.width;
  load_strip<T>(
      image, s.channels, s.height, s.width, row % grid.down * TILE<K> - s.padding, -s.padding, REACH, columns, s, strip);
  transform_strip<K, REACH, T>(
      strip, columns, grid.across, round_up(s.channels, panel_width<T>()), to, tiles, at,
      [](const Vec<T>* d, int64_t step, Vec<T>* t) { input_transform(d, step, t); });
}

// The same of a row of tiles of the output's gradient: [POINTS, tiles, filters rounded up].
template <int K, typename T>
void transform_output_gradients(
    const ConvShape& s, const T* grad_output, const TileGrid& grid, int64_t row, T* strip, T* to, int64_t tiles,
    int64_t at) {
  const int64_t columns = grid.across * TILE<K>, height = s.out_height(), width = s.out_width();
  const ConvShape zeros{};
  const T* image = grad_output + row / grid.down * s.filters * height * width;
  load_strip<T>(image, s.filters, height, width, row % grid.down * TILE<K>, 0, TILE<K>, columns, zeros, strip);
  transform_strip<K, TILE<K>, T>(
      strip, columns, grid.across, round_up(s.filters, panel_width<T>()), to, tiles, at,
      [](const Vec<T>* y, int64_t step, Vec<T>* t) { output_gradient_transform<K>(y, step, t); });
}
