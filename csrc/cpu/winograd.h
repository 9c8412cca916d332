// Convolutions of 3×3 by F(4×4, 3×3), of 4×4 by F(3×3, 4×4) [L: Lavin and Gray, Fast algorithms for convolutional neural
// networks, CVPR 2016]: a tile of outputs, 144 multiplications a pair of channels otherwise, takes 36. Tiles of 6×6 inputs
// and the kernels are carried into a space where the convolution is a product of channels at each of 36 points.
// Included once for each instruction set. K is the kernel's side.
//
// Vectors run over channels. Some rows of tiles are transformed at a time and shared; threads then share out the filters,
// and what lies between the transforms stays in their caches: never the whole of the transformed kernels, 36 values for
// K². A value does not depend on which thread makes it.

constexpr int64_t INPUT_BYTES = 6 << 20, INPUT_TILES = 384;  // of transformed inputs at a time
// Of transformed inputs and gradients, for the kernels' gradient: so many times the sums that each part adds to.
constexpr int64_t GRADIENT_TIMES = 3, GRADIENT_LEAST = 3 << 20, GRADIENT_MOST = 24 << 20;
constexpr int64_t GRADIENT_ROWS = 132;  // filters at a time and thread, for the same

// A panel of kernels: to [TAPS, depth, panel]; that of element (d, n) is the one at d · depth_step + n · panel_step. Zeros
// fill the panel behind `count`.
template <int K, typename T>
void pack_taps(const T* kernel, int64_t depth, int64_t depth_step, int64_t count, int64_t panel_step, T* to) {
  constexpr int64_t width = panel_width<T>();
  if (count < width) std::fill_n(to, TAPS<K> * depth * width, T(0));
  for (int64_t d = 0; d < depth; ++d)
    for (int64_t n = 0; n < count; ++n)
      for (int64_t tap = 0; tap < TAPS<K>; ++tap)
        to[(tap * depth + d) * width + n] = kernel[(d * depth_step + n * panel_step) * TAPS<K> + tap];
}

template <typename T, int TERMS>
inline void weighted_sum(const T* const* from, const T* weight, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    Vec<T> sum = load<T>(from[0] + i) * weight[0];
#pragma GCC unroll 16
    for (int n = 1; n < TERMS; ++n) sum += load<T>(from[n] + i) * weight[n];
    store<T>(to + i, sum);
  }
}

// The transform of a panel of taps at one point, [depth, panel]. Made from the taps each time, at most K² terms: it costs
// less than to write all points' and read them again.
template <int K, typename T>
void transform_kernels(const T* taps, int64_t depth, int point, T* panel) {
  const int64_t count = depth * panel_width<T>();
  const T* from[TAPS<K>];
  T weight[TAPS<K>];
  int terms = 0;
  for (int n = 0; n < TAPS<K>; ++n) {
    weight[terms] = T(kernel_transform<K>(point / REACH, n / K)) * T(kernel_transform<K>(point % REACH, n % K));
    from[terms] = taps + n * count;
    terms += weight[terms] != T(0);
  }
  if (terms == 1)
    weighted_sum<T, 1>(from, weight, count, panel);
  else if (terms == K)
    weighted_sum<T, K>(from, weight, count, panel);
  else
    weighted_sum<T, TAPS<K>>(from, weight, count, panel);
}

// A row of tiles carried back: products [POINTS, tiles, panel] from tile `at` on -> TILE<K> rows of a panel of filters, from
// `filter` on. `rows` has room for them.
template <int K, typename T>
void transform_outputs(
    const ConvShape& s, const T* products, int64_t tiles, int64_t at, const TileGrid& grid, int64_t row,
    int64_t filter, const T* bias, T* rows, T* output) {
  constexpr int64_t width = panel_width<T>();
  const int64_t height = s.out_height(), columns = s.out_width(), top = row % grid.down * TILE<K>;
  const int64_t stride = grid.across * TILE<K>, point = point_stride<T>(tiles, width);
  for (int64_t x = 0; x < grid.across; ++x)
    for (int64_t v = 0; v < width; v += Lanes<T>::count) {
      Vec<T> points[POINTS], tile[TILE<K> * TILE<K>];
      for (int64_t n = 0; n < POINTS; ++n) points[n] = load<T>(products + n * point + (at + x) * width + v);
      both_sides<REACH, TILE<K>>(
          points, tile, [](const Vec<T>* m, int64_t step, Vec<T>* t) { output_transform<K>(m, step, t); });
      for (int64_t n = 0; n < TILE<K> * TILE<K>; ++n)
        store<T>(rows + (n / TILE<K> * stride + x * TILE<K> + n % TILE<K>) * width + v, tile[n]);
    }
  T* image = output + row / grid.down * s.filters * height * columns;
  for (int64_t first = filter; first < std::min(filter + width, s.filters); first += Lanes<T>::count)
    for (int64_t r = 0; r < std::min<int64_t>(TILE<K>, height - top); ++r) {
      T* to = image + (first * height + top + r) * columns;
      to_channels_first<T>(
          rows + r * stride * width + first - filter, width, columns,
          std::min<int64_t>(Lanes<T>::count, s.filters - first), [&](int64_t n, int64_t x, auto values) {
            values = values + (bias ? bias[first + n] : T(0));
            __builtin_memcpy(to + n * height * columns + x, &values, sizeof(values));
          });
    }
}

// Products of transformed tiles, points [POINTS, tiles, depth rounded up], with all kernels, of which there are `panels`:
// threads take panels, pack(panel, taps) gives their kernels, and finish(panel, products) is what becomes of the
// products [POINTS, tiles, panel].
template <int K, typename T, typename Pack, typename Finish>
void for_each_product(
    const T* points, int64_t tiles, int64_t depth, int64_t panels, const Pack& pack, const Finish& finish) {
  constexpr int64_t width = panel_width<T>();
  const int64_t padded = round_up(depth, width);
  for_each_turn(panels, [&](const auto& turn) {
    Scratch<T> taps(TAPS<K> * depth * width), kernels(depth * width), products(POINTS * point_stride<T>(tiles, width));
    for (int64_t panel = turn(); panel < panels; panel = turn()) {
      pack(panel, taps);
      for (int point = 0; point < POINTS; ++point) {
        transform_kernels<K, T>(taps, depth, point, kernels);
        multiply<T>(
            points + point * point_stride<T>(tiles, padded), padded, 1, tiles, kernels, depth, width,
            products + point * point_stride<T>(tiles, width), width, false);
      }
      finish(panel, products);
    }
  });
}

template <int K, typename T>
void winograd(const ConvShape& s, const T* input, const T* kernel, const T* bias, T* output) {
  constexpr int64_t width = panel_width<T>();
  const int64_t channels = round_up(s.channels, width), panels = round_up(s.filters, width) / width;
  const TileGrid grid(s, TILE<K>);
  const int64_t rows = grid.rows_within(std::min(INPUT_TILES, INPUT_BYTES / int64_t(sizeof(T)) / POINTS / channels));
  Scratch<T> points(POINTS * point_stride<T>(rows * grid.across, channels));
  for (int64_t first = 0; first < grid.rows; first += rows) {
    const int64_t count = std::min(rows, grid.rows - first), tiles = count * grid.across;
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> strip(REACH * (grid.across * TILE<K> + K - 1) * channels);
      for (int64_t r = begin; r < end; ++r)
        transform_inputs<K, T>(s, input, grid, first + r, strip, points, tiles, r * grid.across);
    });
    const auto pack = [&](int64_t panel, T* taps) {
      const int64_t filter = panel * width;
      pack_taps<K, T>(
          kernel + filter * s.channels * TAPS<K>, s.channels, 1, std::min(width, s.filters - filter), s.channels, taps);
    };
    for_each_product<K, T>(points, tiles, s.channels, panels, pack, [&](int64_t panel, const T* products) {
      Scratch<T> out(TILE<K> * TILE<K> * grid.across * width);
      for (int64_t r = 0; r < count; ++r)
        transform_outputs<K, T>(
            s, products, tiles, r * grid.across, grid, first + r, panel * width, bias, out, output);
    });
  }
}

// A row of tiles of the input's gradient: products [POINTS, tiles, panel] from tile `at` on are carried back, put together
// in `strip` [REACH, columns, panel], and added to a panel of the image's channels, from `channel` on.
template <int K, typename T>
void add_input_gradients(
    const ConvShape& s, const T* products, int64_t tiles, int64_t at, const TileGrid& grid, int64_t row,
    int64_t channel, T* strip, T* grad_input) {
  constexpr int64_t width = panel_width<T>();
  const int64_t columns = grid.across * TILE<K> + K - 1, point = point_stride<T>(tiles, width);
  std::fill_n(strip, REACH * columns * width, T(0));
  for (int64_t x = 0; x < grid.across; ++x)
    for (int64_t v = 0; v < width; v += Lanes<T>::count) {
      Vec<T> points[POINTS], tile[POINTS];
      for (int64_t n = 0; n < POINTS; ++n) points[n] = load<T>(products + n * point + (at + x) * width + v);
      both_sides<REACH, REACH>(
          points, tile, [](const Vec<T>* m, int64_t step, Vec<T>* t) { input_gradient_transform(m, step, t); });
      for (int64_t n = 0; n < POINTS; ++n) {
        T* to = strip + (n / REACH * columns + x * TILE<K> + n % REACH) * width + v;
        store<T>(to, load<T>(to) + tile[n]);
      }
    }
  T* image = grad_input + row / grid.down * s.channels * s.height * s.width;
  for (int64_t first = channel; first < std::min(channel + width, s.channels); first += Lanes<T>::count)
    for (int64_t r = 0; r < REACH; ++r) {
      const int64_t y = source_of(row % grid.down * TILE<K> + r - s.padding, s.height, s);
      if (y < 0) continue;
      const int64_t count = std::min<int64_t>(Lanes<T>::count, s.channels - first), size = s.height * s.width;
      T* to = image + (first * s.height + y) * s.width;
      const T* from = strip + (r * columns + s.padding) * width + first - channel;
      to_channels_first<T>(from, width, s.width, count, [&](int64_t n, int64_t x, auto values) {
        decltype(values) sum;
        __builtin_memcpy(&sum, to + n * size + x, sizeof(sum));
        sum += values;
        __builtin_memcpy(to + n * size + x, &sum, sizeof(sum));
      });
      for (int64_t edge = 1; s.reflect && edge <= s.padding; ++edge)
        for (int64_t n = 0; n < count; ++n) {
          to[n * size + edge] += from[n - edge * width];
          to[n * size + s.width - 1 - edge] += from[n + (s.width - 1 + edge) * width];
        }
    }
}

// Gradient of the input for that of the output.
template <int K, typename T>
void winograd_input_gradient(const ConvShape& s, const T* grad_output, const T* kernel, T* grad_input) {
  constexpr int64_t width = panel_width<T>();
  const int64_t filters = round_up(s.filters, width), panels = round_up(s.channels, width) / width;
  const TileGrid grid(s, TILE<K>);
  const int64_t rows = grid.rows_within(std::min(INPUT_TILES, INPUT_BYTES / int64_t(sizeof(T)) / POINTS / filters));
  const int64_t size = s.height * s.width;
  parallel_for(0, s.images * s.channels, std::max<int64_t>(1, 65536 / size), [&](int64_t begin, int64_t end) {
    std::fill_n(grad_input + begin * size, (end - begin) * size, T(0));
  });
  Scratch<T> points(POINTS * point_stride<T>(rows * grid.across, filters));
  for (int64_t first = 0; first < grid.rows; first += rows) {
    const int64_t count = std::min(rows, grid.rows - first), tiles = count * grid.across;
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> strip(TILE<K> * TILE<K> * grid.across * filters);
      for (int64_t r = begin; r < end; ++r)
        transform_output_gradients<K, T>(s, grad_output, grid, first + r, strip, points, tiles, r * grid.across);
    });
    const auto pack = [&](int64_t panel, T* taps) {
      const int64_t channel = panel * width;
      pack_taps<K, T>(kernel + channel * TAPS<K>, s.filters, s.channels, std::min(width, s.channels - channel), 1, taps);
    };
    for_each_product<K, T>(points, tiles, s.filters, panels, pack, [&](int64_t panel, const T* products) {
      Scratch<T> strip(REACH * (grid.across * TILE<K> + K - 1) * width);
      for (int64_t r = 0; r < count; ++r)
        add_input_gradients<K, T>(
            s, products, tiles, r * grid.across, grid, first + r, panel * width, strip, grad_input);
    });
  }
}

// Gradients of one filter's kernels, to [channels, TAPS], from those of its transforms, [POINTS, channels] `stride` apart.
template <int K, typename T>
void kernel_gradient_of(const T* sums, int64_t stride, int64_t channels, T* to) {
  constexpr int64_t lanes = Lanes<T>::count;
  for (int64_t c = 0; c < channels; c += lanes) {
    Vec<T> u[POINTS], taps[TAPS<K>];
    for (int64_t n = 0; n < POINTS; ++n) u[n] = load<T>(sums + n * stride + c);
    both_sides<REACH, K>(
        u, taps, [](const Vec<T>* x, int64_t step, Vec<T>* t) { kernel_gradient_transform<K>(x, step, t); });
    T values[TAPS<K>][lanes];
    for (int tap = 0; tap < TAPS<K>; ++tap) store<T>(values[tap], taps[tap]);
    for (int64_t n = 0; n < std::min(lanes, channels - c); ++n)
      for (int tap = 0; tap < TAPS<K>; ++tap) to[(c + n) * TAPS<K> + tap] = values[tap][n];
  }
}

// Gradient of the kernels [filters, channels, K, K] for that of the output.
template <int K, typename T>
void winograd_kernel_gradient(const ConvShape& s, const T* input, const T* grad_output, T* grad_kernel) {
  constexpr int64_t width = panel_width<T>();
  const int64_t channels = round_up(s.channels, width), filters = round_up(s.filters, width);
  const TileGrid grid(s, TILE<K>);
  const int64_t point_bytes = POINTS * int64_t(sizeof(T));
  const int64_t bytes = std::clamp(GRADIENT_TIMES * point_bytes * channels * filters, GRADIENT_LEAST, GRADIENT_MOST);
  const int64_t rows = grid.rows_within(bytes / point_bytes / (channels + filters));
  const int64_t most = rows * grid.across;
  const int64_t share = round_up((s.filters + num_threads() - 1) / num_threads(), ROW_BLOCK);
  const int64_t together = std::min({GRADIENT_ROWS, share, s.filters});
  const int64_t sum_stride = point_stride<T>(together, channels);
  const bool at_once = rows == grid.rows;  // no sums to be kept for later rows
  Scratch<T> points(POINTS * point_stride<T>(most, channels)), grads(POINTS * point_stride<T>(most, filters));
  Scratch<T> kept(at_once ? 0 : (s.filters + together - 1) / together * POINTS * sum_stride);
  for (int64_t first = 0; first < grid.rows; first += rows) {
    const int64_t count = std::min(rows, grid.rows - first), tiles = count * grid.across;
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> strip(REACH * (grid.across * TILE<K> + K - 1) * std::max(channels, filters));
      for (int64_t r = begin; r < end; ++r) {
        transform_inputs<K, T>(s, input, grid, first + r, strip, points, tiles, r * grid.across);
        transform_output_gradients<K, T>(s, grad_output, grid, first + r, strip, grads, tiles, r * grid.across);
      }
    });
    for_each_turn((s.filters + together - 1) / together, [&](const auto& turn) {
      Scratch<T> own(at_once ? POINTS * sum_stride : 0);
      const PackedSides<T> packed(together, channels);
      for (int64_t item = turn(); item * together < s.filters; item = turn()) {
        const int64_t filter = item * together, now = std::min(together, s.filters - filter);
        T* sums = at_once ? static_cast<T*>(own) : kept + item * POINTS * sum_stride;
        for (int64_t n = 0; n < POINTS; ++n)
          multiply_columns<T>(
              grads + n * point_stride<T>(tiles, filters) + filter, filters,
              points + n * point_stride<T>(tiles, channels), channels, tiles, now, channels, sums + n * sum_stride,
              channels, first > 0, packed);
        if (first + rows < grid.rows) continue;
        for (int64_t f = 0; f < now; ++f)
          kernel_gradient_of<K, T>(
              sums + f * channels, sum_stride, s.channels, grad_kernel + (filter + f) * s.channels * TAPS<K>);
      }
    });
  }
}
