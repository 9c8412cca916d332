// Convolutions with large kernels and few channels on one side, by their definition: the first and last layers of a
// generator. Vectors run along rows; a strip of rows of one channel and its sums stay in the first-level cache, and what
// lies outside the picture is put in as the strip is copied. Included once for each instruction set, after
// winograd.h. K is the kernel's side.

constexpr int64_t STRIP_ROWS = 4;                    // of outputs at a time
constexpr int ACROSS = ROW_BLOCK >= 12 ? 4 : 2;      // vectors of a row whose sums are in registers
constexpr int FILTERS = 4;                           // the same, filters
constexpr int GRADIENTS = ROW_BLOCK >= 12 ? 3 : 2;   // the same for the kernels' gradient: filters, K taps each

// Rows of one channel, [rows, columns] from row `top` and column `left` on; outside is 0, or the reflection of a padded
// input.
template <typename T>
void copy_strip(
    const T* map, int64_t height, int64_t width, int64_t top, int64_t left, int64_t rows, int64_t columns,
    const ConvShape& s, T* strip) {
  const int64_t first = std::clamp<int64_t>(-left, 0, columns), last = std::clamp<int64_t>(width - left, first, columns);
  for (int64_t r = 0; r < rows; ++r, strip += columns) {
    const int64_t y = source_of(top + r, height, s);
    if (y < 0) {
      std::fill_n(strip, columns, T(0));
      continue;
    }
    std::fill_n(strip, first, T(0));
    std::copy_n(map + y * width + left + first, last - first, strip + first);
    std::fill_n(strip + last, columns - last, T(0));
    for (int64_t edge = 1; s.reflect && edge <= s.padding; ++edge)
      for (const int64_t x : {-edge, width - 1 + edge})
        if (x - left >= 0 && x - left < columns) strip[x - left] = map[y * width + source_of(x, width, s)];
  }
}

// sums [F, STRIP_ROWS, across] += a strip [STRIP_ROWS + K - 1, across + K - 1] convolved with taps [K², F].
template <int K, typename T, int F>
void add_channel(const T* strip, const T* taps, int64_t rows, int64_t across, T* sums) {
  constexpr int lanes = Lanes<T>::count;
  const int64_t columns = across + K - 1;
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < across; x += ACROSS * lanes) {
      Vec<T> sum[F][ACROSS];
      for (int f = 0; f < F; ++f)
        for (int v = 0; v < ACROSS; ++v) sum[f][v] = load<T>(sums + (f * STRIP_ROWS + y) * across + x + v * lanes);
      const T* tap = taps;
      for (int ky = 0; ky < K; ++ky)
        for (int kx = 0; kx < K; ++kx, tap += F) {
          const T* from = strip + (y + ky) * columns + x + kx;
#pragma GCC unroll 4
          for (int v = 0; v < ACROSS; ++v) {
            const Vec<T> values = load<T>(from + v * lanes);
#pragma GCC unroll 4
            for (int f = 0; f < F; ++f) sum[f][v] += values * tap[f];
          }
        }
      for (int f = 0; f < F; ++f)
        for (int v = 0; v < ACROSS; ++v) store<T>(sums + (f * STRIP_ROWS + y) * across + x + v * lanes, sum[f][v]);
    }
}

template <int K, typename T, int F>
void add_channel_of(int64_t filters, const T* strip, const T* taps, int64_t rows, int64_t across, T* sums) {
  if constexpr (F > 1) {
    if (filters < F) return add_channel_of<K, T, F - 1>(filters, strip, taps, rows, across, sums);
  }
  add_channel<K, T, F>(strip, taps, rows, across, sums);
}

// Maps [images, depth, height, width], padded by s, convolved: [images, filters, out_height, out_width]. Element (f, d, tap)
// of the kernel is at f · f_step + d · d_step + tap, or, turned round, + K² - 1 - tap.
template <int K, typename T>
void direct(
    const ConvShape& s, const T* maps, const T* kernel, int64_t f_step, int64_t d_step, bool turned, const T* bias, T* out) {
  constexpr int64_t taps = K * K;
  const int64_t height = s.out_height(), width = s.out_width(), depth = s.channels;
  const int64_t across = round_up(width, ACROSS * Lanes<T>::count), columns = across + K - 1;
  const int64_t blocks = (s.filters + FILTERS - 1) / FILTERS, strips = (height + STRIP_ROWS - 1) / STRIP_ROWS;
  Scratch<T> packed(blocks * depth * taps * FILTERS);  // [block, depth, taps, filters of the block]
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * FILTERS, count = std::min<int64_t>(FILTERS, s.filters - first);
    T* to = packed + first * depth * taps;
    for (int64_t d = 0; d < depth; ++d)
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t f = first; f < first + count; ++f)
          *to++ = kernel[f * f_step + d * d_step + (turned ? taps - 1 - tap : tap)];
  }
  parallel_for(0, s.images * strips * blocks, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> strip((STRIP_ROWS + K - 1) * columns), sums(FILTERS * STRIP_ROWS * across);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / (strips * blocks), top = item / blocks % strips * STRIP_ROWS;
      const int64_t first = item % blocks * FILTERS, count = std::min<int64_t>(FILTERS, s.filters - first);
      const int64_t rows = std::min(STRIP_ROWS, height - top);
      std::fill_n(static_cast<T*>(sums), FILTERS * STRIP_ROWS * across, T(0));
      for (int64_t d = 0; d < depth; ++d) {
        copy_strip<T>(
            maps + (image * depth + d) * s.height * s.width, s.height, s.width, top - s.padding, -s.padding, rows + K - 1,
            columns, s, strip);
        add_channel_of<K, T, FILTERS>(
            count, strip, packed + (first * depth + d * count) * taps, rows, across, sums);
      }
      for (int64_t f = 0; f < count; ++f)
        for (int64_t y = 0; y < rows; ++y) {
          T* to = out + ((image * s.filters + first + f) * height + top + y) * width;
          const T* from = sums + (f * STRIP_ROWS + y) * across;
          const T more = bias ? bias[first + f] : T(0);
          for (int64_t x = 0; x < width; ++x) to[x] = from[x] + more;
        }
    }
  });
}

// The gradient of a padded map [height + 2 padding, width + 2 padding] -> that of the map.
template <typename T>
void fold_padding(const ConvShape& s, const T* padded, T* map) {
  const int64_t stride = s.width + 2 * s.padding;
  std::fill_n(map, s.height * s.width, T(0));
  for (int64_t row = 0; row < s.height + 2 * s.padding; ++row) {
    const int64_t y = source_of(row - s.padding, s.height, s);
    if (y < 0) continue;
    const T* from = padded + row * stride + s.padding;
    T* to = map + y * s.width;
    for (int64_t x = 0; x < s.width; ++x) to[x] += from[x];
    for (int64_t edge = 1; s.reflect && edge <= s.padding; ++edge) {
      to[edge] += from[-edge];
      to[s.width - 1 - edge] += from[s.width - 1 + edge];
    }
  }
}

template <int K, typename T>
void direct_input_gradient(const ConvShape& s, const T* grad_output, const T* kernel, T* grad_input) {
  const int64_t maps = s.images * s.channels, size = (s.height + 2 * s.padding) * (s.width + 2 * s.padding);
  const bool folds = s.padding > 0;
  Scratch<T> padded(folds ? maps * size : 0);
  const ConvShape back{s.images, s.filters, s.out_height(), s.out_width(), s.channels, K, K - 1, false};
  direct<K, T>(
      back, grad_output, kernel, K * K, s.channels * K * K, true, nullptr, folds ? static_cast<T*>(padded) : grad_input);
  if (folds)
    parallel_for(0, maps, 65536 / size + 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) fold_padding<T>(s, padded + n * size, grad_input + n * s.height * s.width);
    });
}

// sums [K, F, K, lanes] += products of a strip [STRIP_ROWS + K - 1, across + K - 1] and gradients [F, STRIP_ROWS, across].
template <int K, typename T, int F>
void add_taps(const T* strip, const T* grads, int64_t rows, int64_t across, T* sums) {
  constexpr int lanes = Lanes<T>::count;
  const int64_t columns = across + K - 1;
  for (int ky = 0; ky < K; ++ky, sums += F * K * lanes) {
    Vec<T> sum[F][K];
    for (int n = 0; n < F * K; ++n) sum[n / K][n % K] = load<T>(sums + n * lanes);
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < across; x += lanes) {
        Vec<T> grad[F];
        for (int f = 0; f < F; ++f) grad[f] = load<T>(grads + (f * STRIP_ROWS + y) * across + x);
        const T* from = strip + (y + ky) * columns + x;
#pragma GCC unroll 8
        for (int kx = 0; kx < K; ++kx) {
          const Vec<T> values = load<T>(from + kx);
          for (int f = 0; f < F; ++f) sum[f][kx] += values * grad[f];
        }
      }
    for (int n = 0; n < F * K; ++n) store<T>(sums + n * lanes, sum[n / K][n % K]);
  }
}

template <int K, typename T, int F>
void add_taps_of(int64_t filters, const T* strip, const T* grads, int64_t rows, int64_t across, T* sums) {
  if constexpr (F > 1) {
    if (filters < F) return add_taps_of<K, T, F - 1>(filters, strip, grads, rows, across, sums);
  }
  add_taps<K, T, F>(strip, grads, rows, across, sums);
}

template <int K, typename T>
void direct_kernel_gradient(const ConvShape& s, const T* input, const T* grad_output, T* grad_kernel) {
  constexpr int lanes = Lanes<T>::count;
  const int64_t height = s.out_height(), width = s.out_width(), across = round_up(width, lanes), columns = across + K - 1;
  const int64_t blocks = (s.filters + GRADIENTS - 1) / GRADIENTS;
  const ConvShape zeros{};
  for_each_turn(s.channels * blocks, [&](const auto& turn) {
    Scratch<T> strip((STRIP_ROWS + K - 1) * columns), grads(GRADIENTS * STRIP_ROWS * across);
    Scratch<T> sums(K * GRADIENTS * K * lanes);
    for (int64_t item = turn(); item < s.channels * blocks; item = turn()) {
      const int64_t channel = item / blocks, first = item % blocks * GRADIENTS;
      const int64_t count = std::min<int64_t>(GRADIENTS, s.filters - first);
      std::fill_n(static_cast<T*>(sums), K * GRADIENTS * K * lanes, T(0));
      for (int64_t image = 0; image < s.images; ++image)
        for (int64_t top = 0; top < height; top += STRIP_ROWS) {
          const int64_t rows = std::min(STRIP_ROWS, height - top);
          copy_strip<T>(
              input + (image * s.channels + channel) * s.height * s.width, s.height, s.width, top - s.padding, -s.padding,
              rows + K - 1, columns, s, strip);
          for (int64_t f = 0; f < count; ++f)
            copy_strip<T>(
                grad_output + (image * s.filters + first + f) * height * width, height, width, top, 0, rows, across, zeros,
                grads + f * STRIP_ROWS * across);
          add_taps_of<K, T, GRADIENTS>(count, strip, grads, rows, across, sums);
        }
      for (int64_t f = 0; f < count; ++f)
        for (int ky = 0; ky < K; ++ky)
          for (int kx = 0; kx < K; ++kx)
            grad_kernel[((first + f) * s.channels + channel) * K * K + ky * K + kx] =
                sum_lanes<T>(load<T>(sums + ((ky * count + f) * K + kx) * lanes));
    }
  });
}

// By the kernel's side: 3 and 4 in tiles, 7 by the definition.
template <typename T>
void convolve(const ConvShape& s, const T* input, const T* kernel, const T* bias, T* output) {
  if (s.size == 7) return direct<7, T>(s, input, kernel, s.channels * 49, 49, false, bias, output);
  (s.size == 3 ? winograd<3, T> : winograd<4, T>)(s, input, kernel, bias, output);
}

template <typename T>
void convolve_input_gradient(const ConvShape& s, const T* grad_output, const T* kernel, T* grad_input) {
  const auto run = s.size == 3   ? winograd_input_gradient<3, T>
                   : s.size == 4 ? winograd_input_gradient<4, T>
                                 : direct_input_gradient<7, T>;
  run(s, grad_output, kernel, grad_input);
}

template <typename T>
void convolve_kernel_gradient(const ConvShape& s, const T* input, const T* grad_output, T* grad_kernel) {
  const auto run = s.size == 3   ? winograd_kernel_gradient<3, T>
                   : s.size == 4 ? winograd_kernel_gradient<4, T>
                                 : direct_kernel_gradient<7, T>;
  run(s, input, grad_output, grad_kernel);
}
