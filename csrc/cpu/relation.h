// Semantic relation and weighted negatives: fastsketch/reference/relation.py. Included once for each instruction set.
//
// A thread owns a range of an image's rows. It forms whole rows of products, a block of rows at a time, and turns them
// into what is wanted while they lie in the cache. Rows of products are padded to a multiple of the vector.

template <typename T>
constexpr T NEVER = -std::numeric_limits<T>::infinity();

// body(first, rows) for blocks of the rows [begin, end) of `left`, once products = left · rightᵀ, with rows `stride` apart.
template <typename T, typename Body>
void for_each_block(
    const Rows& p, const T* left, int64_t begin, int64_t end, const T* packed, T* products, int64_t stride,
    const Body& body) {
  for (int64_t first = begin; first < end; first += QUERY_BLOCK) {
    const int64_t rows = std::min(QUERY_BLOCK, end - first);
    multiply<T>(left + first * p.width, p.width, 1, rows, packed, p.width, p.samples, products, stride, false);
    body(first, rows);
  }
}

// All rows of an image as the right side of left · rightᵀ.
template <typename T>
struct AsColumns {
  AsColumns(const Rows& p, const T* from) : packed(p.width * round_up(p.samples, panel_width<T>())) {
    pack_transposed<T>(from, p.samples, p.width, p.width, packed);
  }
  Scratch<T> packed;
};

// All rows of an image, each divided by (its norm + eps).
template <typename T>
struct UnitRows {
  UnitRows(const Rows& p, const T* from, int64_t image) : rows(p.samples * p.width), scale(p.samples) {
    const T* row = from + image * p.samples * p.width;
    std::copy_n(row, p.samples * p.width, static_cast<T*>(rows));
    for (int64_t i = 0; i < p.samples; ++i) {
      scale[i] = inverse_norm(row + i * p.width, p.width);
      scale_row(rows + i * p.width, p.width, scale[i]);
    }
  }
  Scratch<T> rows, scale;
};

// Row i of products of keys -> its weights.
template <typename T>
inline void weight_row(const T* products, int64_t i, const Rows& p, double gamma, T* room, T* weight) {
  std::copy_n(products, p.samples, room);
  room[i] = T(-10);
  scale_row(room, p.samples, T(1 / gamma));
  T maximum = NEVER<T>;
  softmax_row<T>(room, p.samples, round_up(p.samples, Lanes<T>::count), maximum);  // e^(z - maximum)
  std::copy_n(room, p.samples, weight);
}

template <typename T>
void relation_weight(const Rows& p, const T* key, double gamma, T* weight) {
  const int64_t stride = round_up(p.samples, Lanes<T>::count);
  for_each_range(p.images, p.samples, p.width, [&](int64_t image, int64_t begin, int64_t end) {
    const UnitRows<T> keys(p, key, image);
    const AsColumns<T> columns(p, keys.rows);
    Scratch<T> products(QUERY_BLOCK * stride), room(stride);
    for_each_block<T>(p, keys.rows, begin, end, columns.packed, products, stride, [&](int64_t first, int64_t rows) {
      for (int64_t i = first; i < first + rows; ++i)
        weight_row<T>(
            products + (i - first) * stride, i, p, gamma, room, weight + (image * p.samples + i) * p.samples);
    });
  });
}

template <typename T>
inline void normalized_softmax_row(T* row, int64_t count, int64_t padded) {
  T maximum = NEVER<T>;
  const T sum = softmax_row<T>(row, count, padded, maximum);
  scale_row(row, count, T(1) / sum);
}

// log(p / ((p + q) / 2)), of the quotient: where p and q are alike it is near 1 and its logarithm small, while the rounding
// of two large logarithms would not cancel.
template <typename T>
inline Vec<T> log_to_mean(Vec<T> p, Vec<T> q) {
  constexpr T smallest = std::numeric_limits<T>::min();
  const Vec<T> mean = (p + q) / T(2);
  return log<T>(p / (mean < smallest ? broadcast<T>(smallest) : mean));
}

// Divergence of the distributions `mine` and `theirs`; `mine` becomes its gradient to the logits of `mine`.
template <typename T>
inline T divergence_row(T* mine, const T* theirs, int64_t padded) {
  constexpr int lanes = Lanes<T>::count;
  Vec<T> loss = {}, along = {};
  for (int64_t j = 0; j < padded; j += lanes) {
    const Vec<T> p = load<T>(mine + j), q = load<T>(theirs + j);
    const Vec<T> part = p * log_to_mean<T>(p, q);
    loss += part + q * log_to_mean<T>(q, p);
    along += part;
  }
  const T shared = sum_lanes<T>(along) / T(2);
  for (int64_t j = 0; j < padded; j += lanes) {
    const Vec<T> p = load<T>(mine + j);
    store<T>(mine + j, p * (log_to_mean<T>(p, load<T>(theirs + j)) / T(2) - shared));
  }
  return sum_lanes<T>(loss) / T(2);
}

template <typename T>
void semantic_relation(const Rows& p, const RelationInputs<T>& in, const RelationOutputs<T>& out) {
  const int64_t n = p.samples, stride = round_up(n, Lanes<T>::count);
  for_each_range(p.images, n, p.width, [&](int64_t image, int64_t begin, int64_t end) {
    const UnitRows<T> queries(p, in.query, image), keys(p, in.key, image);
    const AsColumns<T> query_columns(p, queries.rows), key_columns(p, keys.rows);
    Scratch<T> mine(QUERY_BLOCK * stride), theirs(QUERY_BLOCK * stride), room(stride);
    for_each_block<T>(p, queries.rows, begin, end, query_columns.packed, mine, stride, [&](int64_t first, int64_t rows) {
      multiply<T>(keys.rows + first * p.width, p.width, 1, rows, key_columns.packed, p.width, n, theirs, stride, false);
      for (int64_t i = first; i < first + rows; ++i) {
        const int64_t at = image * n + i;
        T *row = mine + (i - first) * stride, *other = theirs + (i - first) * stride;
        weight_row<T>(other, i, p, in.gamma, room, out.weight + at * n);
        normalized_softmax_row<T>(row, n, stride);
        normalized_softmax_row<T>(other, n, stride);
        out.loss[at] = divergence_row<T>(row, other, stride);
        std::copy_n(row, n, out.room + at * n);
      }
    });
  });
  // `room` holds the gradients to the logits: row and column i of it lead to query i, and are added up before the product.
  for_each_range(p.images, n, p.width, [&](int64_t image, int64_t begin, int64_t end) {
    const UnitRows<T> queries(p, in.query, image);
    const T* logits = out.room + image * n * n;
    T* to = out.gradient + (image * n + begin) * p.width;
    Scratch<T> packed(n * round_up(p.width, panel_width<T>())), both((end - begin) * n);
    pack<T>(queries.rows, n, p.width, p.width, packed);
    std::copy_n(logits + begin * n, (end - begin) * n, static_cast<T*>(both));
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = begin; i < end; ++i) both[(i - begin) * n + j] += logits[j * n + i];
    multiply<T>(both, n, 1, end - begin, packed, n, p.width, to, p.width, false);
    for (int64_t i = begin; i < end; ++i, to += p.width)
      through_norm<T>(to, in.query + (image * n + i) * p.width, queries.scale[i], p.width);
  });
}

// Row of products of query i and the keys -> its loss and, in place, its gradient to each product.
template <typename T>
inline T weighted_row(T* row, int64_t i, const T* weight, int64_t count, int64_t padded, T scale, bool decoupled) {
  const T positive = row[i] * scale;
  for (int64_t j = 0; j < count; ++j) row[j] *= weight ? weight[j] * scale : scale;
  row[i] = NEVER<T>;
  T maximum = NEVER<T>;
  const T sum = softmax_row<T>(row, count, padded, maximum);
  const T top = positive > maximum ? positive : maximum;
  const T shrink = std::exp(maximum - top), negative = sum * shrink, total = negative + std::exp(positive - top);
  const T factor = decoupled ? (sum == T(0) ? T(0) : scale / sum) : scale * shrink / total;
  for (int64_t j = 0; j < count; ++j) row[j] *= weight ? weight[j] * factor : factor;
  row[i] = decoupled ? -scale : -scale * negative / total;
  return positive == top ? std::log1p(negative) : (top - positive) + std::log(total);
}

template <typename T>
void weighted_nce(
    const Rows& p, const T* query, const T* key, const T* weight, double temperature, bool decoupled, T* loss,
    T* gradient) {
  const int64_t stride = round_up(p.samples, Lanes<T>::count), n = p.samples;
  for_each_range(p.images, n, p.width, [&](int64_t image, int64_t begin, int64_t end) {
    const int64_t at = image * n;
    const T* keys = key + at * p.width;
    const AsColumns<T> columns(p, keys);
    Scratch<T> packed(n * round_up(p.width, panel_width<T>())), products(QUERY_BLOCK * stride);
    pack<T>(keys, n, p.width, p.width, packed);
    const T* queries = query + at * p.width;
    for_each_block<T>(p, queries, begin, end, columns.packed, products, stride, [&](int64_t first, int64_t rows) {
      for (int64_t r = 0; r < rows; ++r) {
        const T* weights = weight ? weight + (at + first + r) * n : nullptr;
        loss[at + first + r] =
            weighted_row<T>(products + r * stride, first + r, weights, n, stride, T(1 / temperature), decoupled);
      }
      T* to = gradient + (at + first) * p.width;
      multiply<T>(products, stride, 1, rows, packed, n, p.width, to, p.width, false);
    });
  });
}
