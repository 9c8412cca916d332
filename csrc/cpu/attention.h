// Column means and row entropies of softmax_rows(q kT scale): docs/method.md section 2. Included once for each
// instruction set.
//
// A thread owns a range of rows and holds a few whole rows of the matrix at a time, in its cache: logits, maximum,
// exponentials and sums are taken in one visit. Threads keep column sums of their own, added at the end in order, so
// the result is the same from run to run for a number of threads.

// Keys packed for products, whole, shared by the threads: M·d values for each of the forms asked for.
template <typename T>
struct PackedKeys {
  PackedKeys(const Attention& p, int64_t image, bool also_rows)
      : as_columns(round_up(p.columns, panel_width<T>()) * p.width),
        as_rows(also_rows ? p.columns * round_up(p.width, panel_width<T>()) : 0) {
    constexpr int64_t width = panel_width<T>();
    parallel_for(0, (p.columns + width - 1) / width, 65536 / (width * p.width), [&](int64_t begin, int64_t end) {
      Scratch<T> rows(width * p.width);
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * width, count = std::min(width, p.columns - first);
        for (int64_t r = 0; r < count; ++r) load_row<T>(p.key, image, first + r, p.width, rows + r * p.width);
        pack_transposed<T>(rows, count, p.width, p.width, as_columns + first * p.width);
        if (!also_rows) continue;
        for (int64_t r = 0; r < count; ++r)  // row first + r of every panel of columns
          for (int64_t c = 0; c < round_up(p.width, width); ++c)
            as_rows[(c / width) * width * p.columns + (first + r) * width + c % width] =
                c < p.width ? rows[r * p.width + c] : T(0);
      }
    });
  }
  Scratch<T> as_columns, as_rows;
};

// Calls body(part, first, last) for the rows of each thread's part; as many parts as threads.
template <typename Body>
void for_each_part(int64_t rows, int64_t parts, const Body& body) {
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, rows * part / parts, rows * (part + 1) / parts);
  });
}

inline int64_t attention_parts(const Attention& p) {
  const int64_t worth = p.rows * p.columns * (p.width + 16) / 500'000;
  return std::max<int64_t>(1, std::min({num_threads(), worth, p.rows}));
}

// Rows held at a time: as many as keep them in a second-level cache, in whole blocks of the product.
template <typename T>
int64_t attention_block(const Attention& p) {
  const int64_t cached = 393'216 / int64_t(sizeof(T)) / p.columns / ROW_BLOCK * ROW_BLOCK;
  return std::max<int64_t>(ROW_BLOCK, std::min<int64_t>(cached, 96));
}

// `sums` [parts, n] added up over the parts into to [n].
template <typename T>
void add_parts(const T* sums, int64_t parts, int64_t n, T factor, T* to) {
  for (int64_t j = 0; j < n; ++j) {
    T total = sums[j];
    for (int64_t part = 1; part < parts; ++part) total += sums[part * n + j];
    to[j] = total * factor;
  }
}

// One row of logits -> exponentials; log-sum-exp and entropy = lse - sum_j a_j z_j; returns the factor e^z -> a.
template <typename T>
inline T attention_row(T* row, int64_t count, int64_t padded, T* lse, T* entropy) {
  constexpr int lanes = Lanes<T>::count;
  const T maximum = fill_and_maximum<T>(row, count, padded, row[0]);
  constexpr int64_t run = 16 * lanes;  // short sums first: their rounding errors do not pile up over a long row
  T sum = 0, weighted = 0;
  for (int64_t start = 0; start < padded; start += run) {
    Vec<T> part = {}, part_weighted = {};
    for (int64_t j = start; j < std::min(start + run, padded); j += lanes) {
      const Vec<T> z = load<T>(row + j) - maximum;
      const Vec<T> e = exp<T>(z);
      store<T>(row + j, e);
      part += e;
      part_weighted += e > T(0) ? e * z : Vec<T>{};  // not 0 * -inf
    }
    sum += sum_lanes<T>(part);
    weighted += sum_lanes<T>(part_weighted);
  }
  const T log_sum = std::log(sum);
  *lse = maximum + log_sum;
  *entropy = log_sum - weighted / sum;
  return T(1) / sum;
}

template <typename T>
void attention_forward(const Attention& p, const AttentionForward<T>& out) {
  const int64_t parts = attention_parts(p), block = attention_block<T>(p);
  const int64_t padded = round_up(p.columns, panel_width<T>());
  Scratch<T> sums(parts * p.columns);
  for (int64_t image = 0; image < p.images; ++image) {
    const PackedKeys<T> keys(p, image, false);
    for_each_part(p.rows, parts, [&](int64_t part, int64_t first, int64_t last) {
      Scratch<T> queries(block * p.width), rows(block * padded);
      T* received = sums + part * p.columns;
      std::fill_n(received, p.columns, T(0));
      for (int64_t row0 = first; row0 < last; row0 += block) {
        const int64_t count = std::min(block, last - row0);
        for (int64_t r = 0; r < count; ++r) {
          load_row<T>(p.query, image, row0 + r, p.width, queries + r * p.width);
          scale_row(queries + r * p.width, p.width, T(p.scale));
        }
        multiply<T>(queries, p.width, 1, count, keys.as_columns, p.width, p.columns, rows, padded, false);
        T factor[96];
        for (int64_t r = 0; r < count; ++r) {
          const int64_t at = image * p.rows + row0 + r;
          factor[r] = attention_row<T>(
              rows + r * padded, p.columns, round_up(p.columns, Lanes<T>::count), out.lse + at, out.entropy + at);
        }
        constexpr int64_t strip = 512;  // columns whose sums stay in the first-level cache
        for (int64_t j0 = 0; j0 < p.columns; j0 += strip) {
          const int64_t j1 = std::min(j0 + strip, p.columns);
          T total[strip] = {};
          for (int64_t r = 0; r < count; ++r) {
            const T* row = rows + r * padded;
            for (int64_t j = j0; j < j1; ++j) total[j - j0] += row[j] * factor[r];
          }
          for (int64_t j = j0; j < j1; ++j) received[j] += total[j - j0];
        }
      }
    });
    add_parts<T>(sums, parts, p.columns, T(1) / T(p.rows), out.received + image * p.columns);
  }
}

// Row of logits -> gradient to them: a_j (r_j - sum_k a_k r_k - h (log a_j + entropy)) scale, log a = z - lse.
template <typename T>
inline void attention_row_backward(T* row, const T* share, int64_t padded, T lse, T entropy, T through_entropy, T scale) {
  constexpr int lanes = Lanes<T>::count;
  Vec<T> mean = {};
  for (int64_t j = 0; j < padded; j += lanes) mean += exp<T>(load<T>(row + j) - lse) * load<T>(share + j);
  const T mean_share = sum_lanes<T>(mean);
  for (int64_t j = 0; j < padded; j += lanes) {
    const Vec<T> log_a = load<T>(row + j) - lse;
    const Vec<T> a = exp<T>(log_a);
    const Vec<T> grad = load<T>(share + j) - mean_share - through_entropy * (log_a + entropy);
    store<T>(row + j, a > T(0) ? a * grad * scale : Vec<T>{});
  }
}

template <typename T>
void attention_backward(const Attention& p, const AttentionBackward<T>& in) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const int64_t parts = attention_parts(p), block = attention_block<T>(p);
  const int64_t padded = round_up(p.columns, panel_width<T>());
  const int64_t key_values = p.columns * p.width;
  Scratch<T> sums(parts * key_values), share(padded);
  for (int64_t image = 0; image < p.images; ++image) {
    const PackedKeys<T> keys(p, image, true);
    for (int64_t j = 0; j < padded; ++j)
      share[j] = j < p.columns ? in.grad_received[image * p.columns + j] / T(p.rows) : T(0);
    for_each_part(p.rows, parts, [&](int64_t part, int64_t first, int64_t last) {
      Scratch<T> queries(block * p.width), scaled(block * p.width), rows(block * padded);
      Scratch<T> packed(block * round_up(p.width, panel_width<T>()));
      T* grad_key = sums + part * key_values;
      std::fill_n(grad_key, key_values, T(0));
      for (int64_t row0 = first; row0 < last; row0 += block) {
        const int64_t count = std::min(block, last - row0);
        const int64_t at = image * p.rows + row0;
        for (int64_t r = 0; r < count; ++r) load_row<T>(p.query, image, row0 + r, p.width, queries + r * p.width);
        for (int64_t n = 0; n < count * p.width; ++n) scaled[n] = queries[n] * T(p.scale);
        multiply<T>(scaled, p.width, 1, count, keys.as_columns, p.width, p.columns, rows, padded, false);
        for (int64_t r = 0; r < count; ++r) {
          T* row = rows + r * padded;
          for (int64_t j = p.columns; j < padded; ++j) row[j] = -infinity;
          attention_row_backward<T>(
              row, share, padded, in.lse[at + r], in.entropy[at + r], in.grad_entropy[at + r], T(p.scale));
        }
        multiply<T>(
            rows, padded, 1, count, keys.as_rows, p.columns, p.width, in.grad_query + at * p.width, p.width, false);
        pack<T>(queries, count, p.width, p.width, packed);
        multiply<T>(rows, 1, padded, p.columns, packed, count, p.width, grad_key, p.width, true);
      }
    });
    add_parts<T>(sums, parts, key_values, T(1), in.grad_key + image * key_values);
  }
}
