// softmax(qᵀk · scale) applied to values, channels first, and its gradients: no matrix of all queries and keys is stored.
// Included once for each instruction set, after winograd_tiles.h.
//
// Forward, a thread makes some rows of the matrix, some keys at a time; where those raise a row's maximum, what it has
// summed up is scaled down [L: Milakov & Gimelshein, Online normalizer calculation for softmax, 2018]. Backward, the
// matrix is made again, for some panels of keys at a time: first threads share out the queries, make its values and
// their gradients, and add up the queries' gradients; then they share out the panels, for the gradients of keys and
// values. Sums run over queries or keys in their order: a result does not depend on which thread makes it.

// A [rows, depth], rows `stride` apart, in blocks of ROW_BLOCK rows: [block, depth, ROW_BLOCK]; zeros fill the last.
template <typename T>
void pack_rows(const T* from, int64_t rows, int64_t depth, int64_t stride, T factor, T* to) {
  for (int64_t i = 0; i < rows; i += ROW_BLOCK, to += depth * ROW_BLOCK)
    for (int64_t r = 0; r < ROW_BLOCK; ++r)
      for (int64_t k = 0; k < depth; ++k) to[k * ROW_BLOCK + r] = i + r < rows ? from[(i + r) * stride + k] * factor : T(0);
}

// C [rows, valid] = A · panel, A from `pack_rows`; the sum over the depth is taken a block at a time.
template <typename T>
void multiply_rows(const T* a, int64_t rows, const T* panel, int64_t depth, T* c, int64_t c_row, int64_t valid) {
  for (int64_t k = 0; k < depth; k += DEPTH_BLOCK)
    for (int64_t i = 0; i < rows; i += ROW_BLOCK)
      micro_kernel_of<T, ROW_BLOCK>(
          rows - i, a + i * depth + k * ROW_BLOCK, 1, ROW_BLOCK, panel + k * panel_width<T>(),
          std::min(DEPTH_BLOCK, depth - k), c + i * c_row, c_row, valid, k > 0);
}

// Channels last -> first: from [count, channels rounded up], to rows `to_row` apart, each value times its row's factor.
template <typename T>
void put_channels_first(
    const T* from, int64_t count, int64_t channels, const T* factor, T* to, int64_t to_row) {
  const int64_t padded = round_up(channels, panel_width<T>());
  for (int64_t c = 0; c < channels; c += Lanes<T>::count)
    to_channels_first<T>(
        from + c, padded, count, std::min<int64_t>(Lanes<T>::count, channels - c), [&](int64_t n, int64_t r, auto values) {
          decltype(values) factors;
          __builtin_memcpy(&factors, factor + r, sizeof(factors));
          values *= factors;
          __builtin_memcpy(to + (c + n) * to_row + r, &values, sizeof(values));
        });
}

// Logits of a row -> e^(z - maximum), where the maximum so far is raised first; returns their sum.
template <typename T>
T exponentials(T* row, int64_t count, T* maximum) {
  constexpr int lanes = Lanes<T>::count;
  const T lowest = -std::numeric_limits<T>::infinity();
  *maximum = fill_and_maximum<T>(row, count, round_up(count, lanes), *maximum);
  const T shift = *maximum == lowest ? T(0) : *maximum;  // so far every weight is 0
  constexpr int64_t run = 16 * lanes;  // short sums first: their rounding errors do not pile up over a long row
  T sum = 0;
  for (int64_t start = 0; start < count; start += run) {
    Vec<T> part = {};
    for (int64_t j = start; j < std::min(start + run, count); j += lanes) {
      const Vec<T> e = exp<T>(load<T>(row + j) - shift);
      store<T>(row + j, e);
      part += e;
    }
    sum += sum_lanes<T>(part);
  }
  return sum;
}

template <typename T>
void attend_forward(const Attend& p, const AttendInputs<T>& in, T* output, T* lse) {
  constexpr int64_t width = panel_width<T>();
  // The part of the matrix that a thread makes at a time: 384 KiB, in its second-level cache.
  constexpr int64_t block = 96, together = 4096 / int64_t(sizeof(T));
  const int64_t keys = round_up(p.keys, width), channels = round_up(p.channels, width);
  const int64_t row = std::min(together, keys);
  Scratch<T> key(p.width * keys), value(p.keys * channels);
  for (int64_t image = 0; image < p.images; ++image) {
    const T* q = in.query + image * p.width * p.queries;
    pack<T>(in.key + image * p.width * p.keys, p.width, p.keys, p.keys, key);
    const T* v = in.value + image * p.channels * p.keys;
    parallel_for(0, channels / width, 1, [&](int64_t begin, int64_t end) {
      const int64_t count = std::min(end * width, p.channels) - begin * width;
      for (int64_t first = 0; first < p.keys; first += together) {
        const int64_t valid = std::min(together, p.keys - first);
        pack_transposed<T>(
            v + begin * width * p.keys + first, count, valid, p.keys, value + first * channels + begin * width * valid);
      }
    });
    for_each_turn((p.queries + block - 1) / block, [&](const auto& turn) {
      Scratch<T> some(block * p.width), rows(block * row), out(block * channels), factor(block), maximum(block);
      for (int64_t n = turn() * block; n < p.queries; n = turn() * block) {
        const int64_t count = std::min(block, p.queries - n);
        for (int64_t r = 0; r < count; ++r)
          for (int64_t d = 0; d < p.width; ++d) some[r * p.width + d] = q[d * p.queries + n + r] * T(p.scale);
        std::fill_n(static_cast<T*>(maximum), count, -std::numeric_limits<T>::infinity());
        std::fill_n(static_cast<T*>(factor), count, T(0));  // the sums so far
        for (int64_t first = 0; first < p.keys; first += together) {
          const int64_t valid = std::min(together, p.keys - first);
          multiply<T>(some, p.width, 1, count, key + first * p.width, p.width, valid, rows, row, false);
          for (int64_t r = 0; r < count; ++r) {
            const T before = maximum[r], added = exponentials(rows + r * row, valid, &maximum[r]);
            const T shrink = maximum[r] == before ? T(1) : std::exp(before - maximum[r]);
            factor[r] = factor[r] * shrink + added;
            if (first > 0 && shrink != T(1)) scale_row(out + r * channels, channels, shrink);
          }
          multiply<T>(rows, row, 1, count, value + first * channels, valid, channels, out, channels, first > 0);
        }
        for (int64_t r = 0; r < count; ++r) {
          lse[image * p.queries + n + r] = maximum[r] + std::log(factor[r]);
          factor[r] = T(1) / factor[r];
        }
        T* to = output + image * p.channels * p.queries + n;
        put_channels_first<T>(out, count, p.channels, factor, to, p.queries);
      }
    });
  }
}

template <typename T>
void attend_backward(const Attend& p, const AttendInputs<T>& in, const AttendGradients<T>& g) {
  constexpr int64_t width = panel_width<T>(), block = ROW_BLOCK * 8;
  const int64_t panels = (p.keys + width - 1) / width, depth = round_up(p.width, width);
  const int64_t together = std::min(panels, std::max<int64_t>(8, 2 * num_threads()));
  const int64_t rows = round_up(p.queries, ROW_BLOCK);
  Scratch<T> key(p.width * panels * width), key_rows(panels * width * depth), value(p.channels * panels * width);
  Scratch<T> query_rows(round_up(p.width, ROW_BLOCK) * p.queries), grad_rows(round_up(p.channels, ROW_BLOCK) * p.queries);
  Scratch<T> query(rows * p.width), grad(rows * p.channels), inner(p.queries), grad_query(p.queries * depth);
  Scratch<T> weights(together * p.queries * width), slopes(together * p.queries * width), factor(p.queries);
  std::fill_n(static_cast<T*>(factor), p.queries, T(p.scale));
  for (int64_t image = 0; image < p.images; ++image) {
    const T *q = in.query + image * p.width * p.queries, *k = in.key + image * p.width * p.keys;
    const T *v = in.value + image * p.channels * p.keys, *arriving = g.output + image * p.channels * p.queries;
    const T *out = g.attended + image * p.channels * p.queries, *lse = g.lse + image * p.queries;
    parallel_for(0, 7, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        if (part == 0) pack<T>(v, p.channels, p.keys, p.keys, value);
        if (part == 1) pack_rows<T>(arriving, p.channels, p.queries, p.queries, T(1), grad_rows);
        if (part == 2) pack_columns<T>(arriving, p.channels, p.queries, p.queries, grad);
        if (part == 3) pack<T>(k, p.width, p.keys, p.keys, key);
        if (part == 4) pack_rows<T>(q, p.width, p.queries, p.queries, T(p.scale), query_rows);
        if (part == 5) pack_columns<T>(q, p.width, p.queries, p.queries, query);
        if (part == 6)
          for (int64_t n = 0; n < panels; ++n)
            pack_transposed<T>(
                k + n * width, p.width, std::min(width, p.keys - n * width), p.keys, key_rows + n * width * depth);
      }
    });
    for (int64_t first = 0; first < panels; first += together) {
      const int64_t last = std::min(first + together, panels);
      for_each_turn((p.queries + block - 1) / block, [&](const auto& turn) {
        for (int64_t n = turn() * block; n < p.queries; n = turn() * block) {
          const int64_t count = std::min(block, p.queries - n);
          if (first == 0) {
            std::fill_n(grad_query + n * depth, count * depth, T(0));
            std::fill_n(inner + n, count, T(0));
            for (int64_t c = 0; c < p.channels; ++c)
              for (int64_t r = n; r < n + count; ++r) inner[r] += arriving[c * p.queries + r] * out[c * p.queries + r];
          }
          for (int64_t panel = first; panel < last; ++panel) {
            T* a = weights + ((panel - first) * p.queries + n) * width;
            T* slope = slopes + ((panel - first) * p.queries + n) * width;
            const int64_t valid = std::min(width, p.keys - panel * width);
            multiply_packed<T>(query + n * p.width, count, key + panel * width * p.width, p.width, width, a, width, false);
            multiply_packed<T>(
                grad + n * p.channels, count, value + panel * width * p.channels, p.channels, width, slope, width, false);
            for (int64_t r = 0; r < count; ++r)
              for (int64_t j = 0; j < width; j += Lanes<T>::count) {
                const Vec<T> e = exp<T>(load<T>(a + r * width + j) * T(p.scale) - lse[n + r]);
                store<T>(a + r * width + j, e);
                store<T>(slope + r * width + j, e * (load<T>(slope + r * width + j) - inner[n + r]));
              }
            multiply<T>(
                slope, width, 1, count, key_rows + panel * width * depth, valid, depth, grad_query + n * depth, depth, true);
          }
        }
      });
      for_each_item(last - first, true, [&](int64_t item) {
        const int64_t at = (first + item) * width, valid = std::min(width, p.keys - at);
        multiply_rows<T>(
            grad_rows, p.channels, weights + item * p.queries * width, p.queries,
            g.value + image * p.channels * p.keys + at, p.keys, valid);
        multiply_rows<T>(
            query_rows, p.width, slopes + item * p.queries * width, p.queries,
            g.key + image * p.width * p.keys + at, p.keys, valid);
      });
    }
    const NoSubnormals on_this_thread;
    put_channels_first<T>(
        grad_query, p.queries, p.width, factor, g.query + image * p.width * p.queries, p.queries);
  }
}
