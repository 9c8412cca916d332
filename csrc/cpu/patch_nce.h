// Patch contrastive loss: docs/method.md section 5 [L: CUT, ECCV 2020]. Included once for each instruction set.
//
// Each thread owns a range of queries. For a tile of keys it forms logits for a block of its queries, folds them into a
// running maximum m and sum N over the negatives (online softmax [L: Milakov & Gimelshein 2018]) and, where the gradient
// is wanted, into sum_j e^(z_ij - m) k_j, so that logits are computed once and never leave the cache:
//   loss_i = log(1 + N_i e^(m_i - z_ii)),   d loss_i / d q_i = sum_{j in N(i)} p_ij (k_j - k_i) / temperature.

constexpr int64_t KEY_TILE = 256;
constexpr int64_t QUERY_BLOCK = 96;

// As EPSILON in fastsketch/reference/patch_nce.py.
constexpr double NORM_EPSILON = 1e-7;

template <typename T>
inline T inverse_norm(const T* row, int64_t width) {
  return T(1) / (std::sqrt(dot(row, row, width)) + T(NORM_EPSILON));
}

// Rows [begin, end) of an image, each times its `scale` (its inverse norm if null and `normalize`) times `factor`. The
// inverse norms that were made go to `made` as well, if it is given.
template <typename T>
void load_rows(
    const View& view, int64_t image, int64_t begin, int64_t end, int64_t width, bool normalize, const T* scale,
    T factor, T* to, T* made = nullptr) {
  for (int64_t row = begin; row < end; ++row, to += width) {
    load_row(view, image, row, width, to);
    T by = factor;
    if (normalize) {
      const T inverse = scale ? scale[row] : inverse_norm(to, width);
      if (made) made[row - begin] = inverse;
      by *= inverse;
    }
    if (by != T(1)) scale_row(to, width, by);
  }
}

// Gradient to x of a loss whose gradient to x·scale, scale = 1 / (|x| + eps), is `grad`; in place.
// A zero vector's norm has gradient 0.
template <typename T>
void through_norm(T* grad, const T* x, T scale, int64_t width) {
  const T norm = std::sqrt(dot(x, x, width));
  const T along = norm > T(0) ? dot<T>(grad, x, width) * scale * scale / norm : T(0);
  for (int64_t i = 0; i < width; ++i) grad[i] = grad[i] * scale - x[i] * along;
}

template <typename T>
inline void mask_row(T* row, int64_t count, const int32_t* region, int32_t own, Negatives negatives, T value) {
  if (negatives == Negatives::same_region) {
    for (int64_t j = 0; j < count; ++j) row[j] = region[j] == own ? row[j] : value;
  } else {
    for (int64_t j = 0; j < count; ++j) row[j] = region[j] != own ? row[j] : value;
  }
}

// Row of logits -> e^(z - m) with the maximum m so far, which is updated; returns their sum. `padded` is a multiple of
// the vector, the values past `count` become 0.
template <typename T>
inline T softmax_row(T* row, int64_t count, int64_t padded, T& maximum) {
  constexpr int lanes = Lanes<T>::count;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  maximum = fill_and_maximum<T>(row, count, padded, maximum);
  const T shift = maximum == -infinity ? T(0) : maximum;  // all masked so far: every e^z is 0
  Vec<T> sum = {};
  for (int64_t j = 0; j < padded; j += lanes) {
    const Vec<T> e = exp<T>(load<T>(row + j) - shift);
    store<T>(row + j, e);
    sum += e;
  }
  return sum_lanes<T>(sum);
}

template <typename T>
struct NceTile {
  explicit NceTile(int64_t width)
      : rows(KEY_TILE * width),
        as_columns(round_up(KEY_TILE, panel_width<T>()) * width),
        as_rows(KEY_TILE * round_up(width, panel_width<T>())) {}
  Scratch<T> rows, as_columns, as_rows;
};

// Calls body(image, first, last) for the samples of each image that a thread owns.
template <typename Body>
void for_each_range(int64_t images, int64_t samples, int64_t width, const Body& body) {
  const int64_t least = 500'000 / std::max<int64_t>(samples * width, 1);  // samples worth a thread
  parallel_for(0, images * samples, least, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const int64_t image = at / samples, first = at % samples;
      const int64_t last = std::min(samples, first + end - at);
      body(image, first, last);
      at += last - first;
    }
  });
}

// Turns the sums over the negatives of query i into its loss and, in place, `gradient` into that of the query. `room` is for
// two rows.
template <typename T>
void finish_query(
    const PatchNce& p, const PatchNceForward<T>& out, int64_t image, int64_t i, T maximum, T sum, T positive,
    T* gradient, T* room) {
  const int64_t at = image * p.samples + i;
  const T top = positive > maximum ? positive : maximum;
  const T shrink = std::exp(maximum - top);
  const T negative = sum * shrink;
  const T total = negative + std::exp(positive - top);
  const T loss = positive == top ? std::log1p(negative) : (top - positive) + std::log(total);
  out.loss[at] = loss;
  out.lse[at] = positive + loss;
  if (!gradient) return;

  const T* query = row_values<T>(p.query, image, i, p.width, room);
  const T* key = row_values<T>(p.key, image, i, p.width, room + p.width);
  const T from_sum = shrink / total / T(p.temperature);
  const T from_key = negative / total / T(p.temperature) * (p.normalize ? out.key_scale[at] : T(1));
  for (int64_t d = 0; d < p.width; ++d) gradient[d] = gradient[d] * from_sum - key[d] * from_key;
  if (p.normalize) through_norm(gradient, query, out.query_scale[at], p.width);
}

template <typename T>
void patch_nce_forward(const PatchNce& p, const PatchNceForward<T>& out) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const int64_t width = p.width;
  for_each_range(p.images, p.samples, width, [&](int64_t image, int64_t first, int64_t last) {
    NceTile<T> tile(width);
    Scratch<T> queries(QUERY_BLOCK * width), logits(QUERY_BLOCK * KEY_TILE), room(2 * width), key_scale(KEY_TILE);
    Scratch<T> maximum(last - first), sum(last - first), positive(last - first);
    std::fill_n(static_cast<T*>(maximum), last - first, -infinity);
    std::fill_n(static_cast<T*>(sum), last - first, T(0));
    const int32_t* region = p.region ? p.region + image * p.samples : nullptr;
    T* gradient = out.unit_gradient ? out.unit_gradient + (image * p.samples + first) * width : nullptr;

    for (int64_t key0 = 0; key0 < p.samples; key0 += KEY_TILE) {
      const int64_t keys = std::min(KEY_TILE, p.samples - key0);
      const int64_t padded = round_up(keys, Lanes<T>::count);
      load_rows<T>(p.key, image, key0, key0 + keys, width, p.normalize, nullptr, T(1), tile.rows, key_scale);
      if (p.normalize)  // of the owned samples: another thread writes the others
        for (int64_t i = std::max(first, key0); i < std::min(last, key0 + keys); ++i)
          out.key_scale[image * p.samples + i] = key_scale[i - key0];
      pack_transposed<T>(tile.rows, keys, width, width, tile.as_columns);
      if (gradient) pack<T>(tile.rows, keys, width, width, tile.as_rows);
      for (int64_t row0 = first; row0 < last; row0 += QUERY_BLOCK) {
        const int64_t rows = std::min(QUERY_BLOCK, last - row0);
        load_rows<T>(
            p.query, image, row0, row0 + rows, width, p.normalize, key0 ? out.query_scale + image * p.samples : nullptr,
            T(1 / p.temperature), queries, p.normalize ? out.query_scale + image * p.samples + row0 : nullptr);
        multiply<T>(queries, width, 1, rows, tile.as_columns, width, keys, logits, KEY_TILE, false);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t i = row0 + r, n = i - first;
          T* row = logits + r * KEY_TILE;
          if (i >= key0 && i < key0 + keys) {
            positive[n] = row[i - key0];
            row[i - key0] = -infinity;
          }
          if (region) mask_row(row, keys, region + key0, region[i], p.negatives, -infinity);
          const T before = maximum[n];
          const T added = softmax_row<T>(row, keys, padded, maximum[n]);
          const T shrink = maximum[n] == before ? T(1) : std::exp(before - maximum[n]);
          sum[n] = sum[n] * shrink + added;
          if (gradient && key0 > 0 && shrink != T(1)) scale_row(gradient + n * width, width, shrink);
        }
        if (gradient)
          multiply<T>(
              logits, KEY_TILE, 1, rows, tile.as_rows, keys, width, gradient + (row0 - first) * width, width, key0 > 0);
      }
    }
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i - first;
      finish_query<T>(
          p, out, image, i, maximum[n], sum[n], positive[n], gradient ? gradient + n * width : nullptr, room);
    }
  });
}

// Gradient to one side, by recomputation: with s_ij = g_i (p_ij - [i = j]) / temperature, that of q_i is sum_j s_ij k_j,
// that of k_j is sum_i s_ij q_i. `own` is the side whose gradient is made, `other` the other one.
// The temperature always divides the query, so that both sides meet the same logits as the forward pass.
template <typename T>
void nce_backward_side(const PatchNce& p, const PatchNceBackward<T>& in, bool to_query, T* grad) {
  const View& own = to_query ? p.query : p.key;
  const View& other = to_query ? p.key : p.query;
  const T* own_scales = to_query ? in.query_scale : in.key_scale;
  const T* other_scales = to_query ? in.key_scale : in.query_scale;
  const T inverse_temperature = T(1 / p.temperature);
  const T own_factor = to_query ? inverse_temperature : T(1), other_factor = to_query ? T(1) : inverse_temperature;
  const int64_t width = p.width;
  for_each_range(p.images, p.samples, width, [&](int64_t image, int64_t first, int64_t last) {
    NceTile<T> tile(width);
    Scratch<T> block(QUERY_BLOCK * width), logits(QUERY_BLOCK * KEY_TILE), raw(width);
    const int64_t at = image * p.samples;
    const int32_t* region = p.region ? p.region + at : nullptr;
    const T* lse = in.lse + at;
    const T* weight = in.grad_loss + at;
    const T* own_scale = p.normalize ? own_scales + at : nullptr;
    const T* other_scale = p.normalize ? other_scales + at : nullptr;
    T* to = grad + (at + first) * width;

    for (int64_t tile0 = 0; tile0 < p.samples; tile0 += KEY_TILE) {
      const int64_t columns = std::min(KEY_TILE, p.samples - tile0);
      const int64_t whole = columns / Lanes<T>::count * Lanes<T>::count;
      load_rows<T>(other, image, tile0, tile0 + columns, width, p.normalize, other_scale, other_factor, tile.rows);
      pack_transposed<T>(tile.rows, columns, width, width, tile.as_columns);
      pack<T>(tile.rows, columns, width, width, tile.as_rows);
      for (int64_t row0 = first; row0 < last; row0 += QUERY_BLOCK) {
        const int64_t rows = std::min(QUERY_BLOCK, last - row0);
        load_rows<T>(own, image, row0, row0 + rows, width, p.normalize, own_scale, own_factor, block);
        multiply<T>(block, width, 1, rows, tile.as_columns, width, columns, logits, KEY_TILE, false);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t i = row0 + r;
          T* row = logits + r * KEY_TILE;
          const bool has_positive = i >= tile0 && i < tile0 + columns;
          const T positive = has_positive ? std::expm1(row[i - tile0] - lse[i]) * weight[i] : T(0);
          for (int64_t j = columns; j < round_up(columns, Lanes<T>::count); ++j) row[j] = T(0);
          for (int64_t j = 0; j < round_up(columns, Lanes<T>::count); j += Lanes<T>::count) {
            Vec<T> shift, by;
            if (to_query) {
              shift = broadcast<T>(lse[i]);
              by = broadcast<T>(weight[i]);
            } else if (j < whole) {
              shift = load<T>(lse + tile0 + j);
              by = load<T>(weight + tile0 + j);
            } else {
              shift = by = Vec<T>{};
              for (int64_t c = j; c < columns; ++c) {
                shift[int(c - j)] = lse[tile0 + c];
                by[int(c - j)] = weight[tile0 + c];
              }
            }
            store<T>(row + j, exp<T>(load<T>(row + j) - shift) * by);
          }
          if (region) mask_row(row, columns, region + tile0, region[i], p.negatives, T(0));
          if (has_positive) row[i - tile0] = positive;
        }
        multiply<T>(
            logits, KEY_TILE, 1, rows, tile.as_rows, columns, width, to + (row0 - first) * width, width, tile0 > 0);
      }
    }
    for (int64_t i = first; i < last; ++i) {
      T* row = to + (i - first) * width;
      if (to_query) scale_row(row, width, inverse_temperature);
      if (p.normalize) {
        through_norm<T>(row, row_values<T>(own, image, i, width, raw), own_scale[i], width);
      }
    }
  });
}

template <typename T>
void patch_nce_backward(const PatchNce& p, const PatchNceBackward<T>& in) {
  if (in.grad_query) nce_backward_side(p, in, true, in.grad_query);
  if (in.grad_key) nce_backward_side(p, in, false, in.grad_key);
}
