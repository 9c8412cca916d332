// Attention over values as in attend.h, of bfloat16 rows by AMX's products [L: Dao et al., FlashAttention, NeurIPS
// 2022]: logits, softmax and sums are float32; weights are rounded to bfloat16 where they meet the values, and their
// gradients where they meet queries and keys. Included after tiles.h.

constexpr int64_t QUERIES = 64, KEYS = 512;  // the part of the matrix that a thread makes at a time, in its cache
constexpr int64_t KEYS_OF_ITEM = 128;        // whose gradients are one thread's work
constexpr int64_t QUERIES_SUMMED = 512;      // at a time, for those

inline float dot_rows(const BFloat16* a, const float* b, int64_t count) {
  FloatVec sum = {};
  int64_t i = 0;
  for (; i + SIDE <= count; i += SIDE) sum += load_values<float>(a + i) * load<float>(b + i);
  float total = sum_lanes<float>(sum);
  for (; i < count; ++i) total += float(a[i]) * b[i];
  return total;
}

// Weights e^(scale z - maximum) of a row of logits z, those behind `valid` 0, to put(j, 16 of them); `padded` is a
// multiple of 16. The maximum so far, of scale z, is raised, and the weights' sum returned.
template <typename Put>
inline float weigh_row(float* row, int64_t valid, int64_t padded, float scale, float& maximum, const Put& put) {
  const float largest = fill_and_maximum<float>(row, valid, padded, -std::numeric_limits<float>::infinity());
  maximum = std::max(maximum, largest * scale);
  const float shift = maximum == -std::numeric_limits<float>::infinity() ? 0.F : maximum;  // so far every weight is 0
  FloatVec sum = {};
  for (int64_t j = 0; j < padded; j += SIDE) {
    const FloatVec e = exp<float>(load<float>(row + j) * scale - shift);
    put(j, e);
    sum += e;
  }
  return sum_by_halves<float>(sum);
}

inline void attend_rows_forward(const Attend& p, const AttendRows& in, float* output, float* lse) {
  const int64_t width = round_up(p.width, STEP), keys = round_up(p.keys, STEP), channels = round_up(p.channels, STEP);
  Scratch<BFloat16> key(keys * width), value(keys * channels);
  for (int64_t image = 0; image < p.images; ++image) {
    const BFloat16 *q = in.query + image * p.queries * p.width, *k = in.key + image * p.keys * p.width;
    const BFloat16* v = in.value + image * p.keys * p.channels;
    for_each_step(p.keys, [&](int64_t n) {
      block_rows(k + n * p.width, p.width, p.keys - n, p.width, STEP, true, key + n * width);
    });
    for_each_step(p.channels, [&](int64_t c) {
      block_pairs(v + c, p.channels, p.keys, p.channels - c, keys, STEP, false, value + c * keys);
    });
    for_each_turn((p.queries + QUERIES - 1) / QUERIES, [&](const auto& turn) {
      const TilesInUse tiles;
      Scratch<BFloat16> some(QUERIES * width), weights(QUERIES * KEYS);
      Scratch<float> logits(QUERIES * KEYS), out(QUERIES * channels), maximum(QUERIES), sum(QUERIES);
      for (int64_t n = turn() * QUERIES; n < p.queries; n = turn() * QUERIES) {
        const int64_t count = std::min(QUERIES, p.queries - n), rows = round_up(count, STEP);
        block_rows(q + n * p.width, p.width, count, p.width, rows, false, some);
        std::fill_n(static_cast<float*>(maximum), count, -std::numeric_limits<float>::infinity());
        std::fill_n(static_cast<float*>(sum), count, 0.F);
        for (int64_t first = 0; first < p.keys; first += KEYS) {
          const int64_t valid = std::min(KEYS, p.keys - first), columns = round_up(valid, STEP);
          multiply_blocks(
              some, width * SIDE, key + first * width, width * SIDE, width / DEPTH, rows, columns, logits, KEYS, false);
          for (int64_t r = 0; r < count; ++r) {
            const float before = maximum[r];
            const float added = weigh_row(
                logits + r * KEYS, valid, columns, float(p.scale), maximum[r], [&](int64_t j, FloatVec weight) {
                  put_rounded(weight, SIDE, weights + place_in_rows(r, j, columns / DEPTH));
                });
            const float shrink = maximum[r] == before ? 1.F : std::exp(before - maximum[r]);
            sum[r] = sum[r] * shrink + added;
            if (first > 0 && shrink != 1.F) scale_row(out + r * channels, channels, shrink);
          }
          multiply_blocks(
              weights, columns * SIDE, value + first * SIDE, keys * SIDE, columns / DEPTH, rows, channels, out,
              channels, first > 0);
        }
        for (int64_t r = 0; r < count; ++r) {
          const int64_t at = image * p.queries + n + r;
          lse[at] = maximum[r] + std::log(sum[r]);
          std::copy_n(out + r * channels, p.channels, output + at * p.channels);
          scale_row(output + at * p.channels, p.channels, 1.F / sum[r]);
        }
      }
    });
  }
}

// Rows [channels, keys] of sums -> [keys, channels] in bfloat16, times `factor`.
inline void put_turned(
    const float* from, int64_t from_row, int64_t channels, int64_t keys, float factor, BFloat16* to) {
  for (int64_t j = 0; j < keys; j += SIDE)
    for (int64_t c = 0; c < channels; c += SIDE) {
      FloatVec square[SIDE];
      for (int64_t i = 0; i < SIDE; ++i) square[i] = load<float>(from + (c + i) * from_row + j) * factor;
      transpose<float>(square);
      for (int64_t i = 0; i < std::min(SIDE, keys - j); ++i)
        put_rounded(square[i], channels - c, to + (j + i) * channels + c);
    }
}

// The gradients of one image after the other. Its matrix is made again, `together` keys of it at a time: first threads
// share out the queries, make weights and slopes (the logits' gradients), and add up the queries' gradients; then they
// share out those keys, for the gradients of keys and values.
class AttendRowsBackward {
 public:
  AttendRowsBackward(const Attend& shape, const AttendRows& inputs, const AttendRowsGradients& gradients)
      : p(shape),
        in(inputs),
        g(gradients),
        together(KEYS * ((num_threads() * KEYS_OF_ITEM + KEYS - 1) / KEYS)),
        keys(round_up(p.keys, STEP)),
        queries(round_up(p.queries, QUERIES)),
        width(round_up(p.width, STEP)),
        channels(round_up(p.channels, STEP)),
        key(keys * width),
        key_sums(keys * width),
        value(keys * channels),
        query(queries * width),
        grad(queries * channels),
        weights(std::min(together, keys) * queries),
        slopes(std::min(together, keys) * queries),
        inner(queries),
        grad_query(queries * width) {}

  void run() {
    for (int64_t image = 0; image < p.images; ++image) {
      fill_blocks(image);
      for (int64_t start = 0; start < p.keys; start += together) {
        const int64_t end = std::min(start + together, p.keys);
        for_each_turn(queries / QUERIES, [&](const auto& turn) { share_queries(image, start, end, turn); });
        for_each_item((end - start + KEYS_OF_ITEM - 1) / KEYS_OF_ITEM, true, [&](int64_t item) {
          const int64_t first = start + item * KEYS_OF_ITEM;
          gradients_of_keys(image, start, first, std::min(KEYS_OF_ITEM, end - first));
        });
      }
      parallel_for(0, p.queries, QUERIES, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
          for (int64_t d = 0; d < p.width; d += SIDE)
            put_rounded(
                load<float>(grad_query + n * width + d) * float(p.scale), p.width - d,
                g.query + (image * p.queries + n) * p.width + d);
      });
    }
  }

 private:
  const BFloat16* arriving(int64_t image, int64_t n) const { return g.output + (image * p.queries + n) * p.channels; }

  void fill_blocks(int64_t image) {
    const BFloat16 *q = in.query + image * p.queries * p.width, *k = in.key + image * p.keys * p.width;
    const BFloat16 *v = in.value + image * p.keys * p.channels, *from_above = arriving(image, 0);
    for_each_step(p.keys, [&](int64_t n) {
      block_rows(k + n * p.width, p.width, p.keys - n, p.width, STEP, true, key + n * width);
      block_rows(v + n * p.channels, p.channels, p.keys - n, p.channels, STEP, true, value + n * channels);
    });
    for_each_step(p.width, [&](int64_t d) {
      block_pairs(k + d, p.width, p.keys, p.width - d, keys, STEP, false, key_sums + d * keys);
      block_pairs(q + d, p.width, p.queries, p.width - d, queries, STEP, true, query + d * queries);
    });
    for_each_step(p.channels, [&](int64_t c) {
      block_pairs(from_above + c, p.channels, p.queries, p.channels - c, queries, STEP, true, grad + c * queries);
    });
  }

  struct Part {  // of one thread
    explicit Part(const AttendRowsBackward& whole)
        : query(QUERIES * whole.width), grad(QUERIES * whole.channels), slopes(QUERIES * KEYS) {}
    Scratch<BFloat16> query, grad, slopes;  // as A
    Scratch<float> logits{QUERIES * KEYS}, reached{QUERIES * KEYS};
  };

  template <typename Turn>
  void share_queries(int64_t image, int64_t start, int64_t end, const Turn& turn) {
    const TilesInUse tiles;
    Part part(*this);
    for (int64_t n = turn() * QUERIES; n < p.queries; n = turn() * QUERIES) {
      const int64_t count = std::min(QUERIES, p.queries - n);
      const BFloat16* from = in.query + (image * p.queries + n) * p.width;
      block_rows(from, p.width, count, p.width, QUERIES, false, part.query);
      block_rows(arriving(image, n), p.channels, count, p.channels, QUERIES, false, part.grad);
      for (int64_t r = n; r < n + count && start == 0; ++r)
        inner[r] = dot_rows(arriving(image, r), g.attended + (image * p.queries + r) * p.channels, p.channels);
      for (int64_t first = start; first < end; first += KEYS) {
        const int64_t valid = std::min(KEYS, end - first), columns = round_up(valid, STEP);
        multiply_blocks(
            part.query, width * SIDE, key + first * width, width * SIDE, width / DEPTH, QUERIES, columns, part.logits,
            KEYS, false);
        multiply_blocks(
            part.grad, channels * SIDE, value + first * channels, channels * SIDE, channels / DEPTH, QUERIES, columns,
            part.reached, KEYS, false);
        for (int64_t r = 0; r < QUERIES && valid < columns; ++r)  // keys that are not there: weight 0
          std::fill_n(part.logits + r * KEYS + valid, columns - valid, -std::numeric_limits<float>::infinity());
        for (int64_t r = 0; r < QUERIES; r += 2)
          slopes_of_pair(part, image, n, r, std::clamp<int64_t>(count - r, 0, 2), first - start, columns);
        multiply_blocks(
            part.slopes, columns * SIDE, key_sums + first * SIDE, keys * SIDE, columns / DEPTH, QUERIES, width,
            grad_query + n * width, width, first > 0);
      }
    }
  }

  // Weights and slopes of two rows, which stand side by side where the depth is queries; 0 for rows that are not there.
  void slopes_of_pair(
      Part& part, int64_t image, int64_t n, int64_t r, int64_t rows, int64_t first, int64_t columns) {
    const float *lse = g.lse + image * p.queries + n + r, *mean = inner + n + r, scale = float(p.scale);
    const int64_t line = (n + r) / DEPTH * BLOCK + r % DEPTH / 2 * DEPTH;
    for (int64_t j = 0; j < columns; j += SIDE) {
      FloatVec weight[2] = {}, slope[2] = {};
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = (r + i) * KEYS + j;
        weight[i] = exp<float>(load<float>(part.logits + at) * scale - lse[i]);
        slope[i] = weight[i] * (load<float>(part.reached + at) - mean[i]);
      }
      put_pair(weight, weights + (first + j) * queries + line);
      put_pair(slope, slopes + (first + j) * queries + line);
      for (int64_t i = 0; i < 2; ++i)
        put_rounded(slope[i], SIDE, part.slopes + place_in_rows(r + i, j, columns / DEPTH));
    }
  }

  void gradients_of_keys(int64_t image, int64_t start, int64_t first, int64_t count) {
    const TilesInUse tiles;
    Scratch<float> grad_value(channels * KEYS_OF_ITEM), grad_key(width * KEYS_OF_ITEM);
    const int64_t next = queries * SIDE, columns = round_up(count, STEP);
    for (int64_t n = 0; n < queries; n += QUERIES_SUMMED) {
      const int64_t deep = std::min(QUERIES_SUMMED, queries - n) / DEPTH, from = (first - start) * queries + n * SIDE;
      multiply_blocks(
          grad + n * SIDE, next, weights + from, next, deep, channels, columns, grad_value, KEYS_OF_ITEM, n > 0);
      multiply_blocks(
          query + n * SIDE, next, slopes + from, next, deep, width, columns, grad_key, KEYS_OF_ITEM, n > 0);
    }
    const int64_t row = image * p.keys + first;
    put_turned(grad_value, KEYS_OF_ITEM, p.channels, count, 1, g.value + row * p.channels);
    put_turned(grad_key, KEYS_OF_ITEM, p.width, count, float(p.scale), g.key + row * p.width);
  }

  const Attend& p;
  const AttendRows& in;
  const AttendRowsGradients& g;
  const int64_t together, keys, queries, width, channels;  // whole blocks of them
  Scratch<BFloat16> key, key_sums;    // as B: columns are keys; the depth is keys
  Scratch<BFloat16> value;            // as B: columns are keys
  Scratch<BFloat16> query, grad;      // transposed, as A: the depth is queries
  Scratch<BFloat16> weights, slopes;  // as B: the depth is queries
  Scratch<float> inner, grad_query;
};

inline void attend_rows_backward(const Attend& p, const AttendRows& in, const AttendRowsGradients& g) {
  AttendRowsBackward(p, in, g).run();
}
