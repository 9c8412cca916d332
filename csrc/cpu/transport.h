// Entropic optimal transport by Sinkhorn's iterations, and the gradient through them: fastsketch/reference/transport.py.
// Included once for each instruction set.
//
// An iteration reads the matrix once: a row's factor is known as soon as its product with the columns' factors is, and
// then the row is added to the columns' sums while it lies in the cache. Threads take images.

// A matrix [rows, columns] whose rows are `stride` apart, a multiple of the vector, with zeros behind the columns.
template <typename T>
struct Padded {
  Padded(int64_t rows_, int64_t columns_)
      : rows(rows_), columns(columns_), stride(round_up(columns_, Lanes<T>::count)), data(rows_ * stride) {}
  T* row(int64_t i) const { return data + i * stride; }
  int64_t rows, columns, stride;
  Scratch<T> data;
};

// factor_i = solve(i, row_i · vector) and sums += factor_i row_i for COUNT rows from `first` on.
template <typename T, int COUNT, typename Solve>
inline void sweep_rows(const Padded<T>& m, int64_t first, const T* vector, T* factors, T* sums, const Solve& solve) {
  constexpr int lanes = Lanes<T>::count;
  Vec<T> product[COUNT] = {};
  for (int64_t j = 0; j < m.stride; j += lanes) {
    const Vec<T> v = load<T>(vector + j);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r) product[r] += load<T>(m.row(first + r) + j) * v;
  }
  Vec<T> factor[COUNT];
  for (int r = 0; r < COUNT; ++r) {
    factors[first + r] = solve(first + r, sum_lanes<T>(product[r]));
    factor[r] = broadcast<T>(factors[first + r]);
  }
  for (int64_t j = 0; j < m.stride; j += lanes) {
    Vec<T> sum = load<T>(sums + j);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r) sum += load<T>(m.row(first + r) + j) * factor[r];
    store<T>(sums + j, sum);
  }
}

// The same for all rows, with sums = 0 before.
template <typename T, typename Solve>
void sweep(const Padded<T>& m, const T* vector, T* factors, T* sums, const Solve& solve) {
  std::fill_n(sums, m.stride, T(0));
  int64_t i = 0;
  for (; i + 4 <= m.rows; i += 4) sweep_rows<T, 4>(m, i, vector, factors, sums, solve);
  for (; i < m.rows; ++i) sweep_rows<T, 1>(m, i, vector, factors, sums, solve);
}

// (cost - its row's maximum - then its column's) / epsilon, exponentiated: each row and column has a 1, and nothing
// overflows. `start` becomes the columns' factors that stand for a start from 1 on the rows' scale.
template <typename T>
void gibbs_kernel(const T* cost, T epsilon, const Padded<T>& to, T* start) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  constexpr int lanes = Lanes<T>::count;
  std::fill_n(start, to.stride, -infinity);
  for (int64_t i = 0; i < to.rows; ++i) {
    const T* from = cost + i * to.columns;
    T* row = to.row(i);
    T most = -infinity;
    for (int64_t j = 0; j < to.columns; ++j) most = from[j] <= most ? most : from[j];  // NaN stays
    for (int64_t j = 0; j < to.columns; ++j) {
      row[j] = from[j] - most;
      start[j] = row[j] <= start[j] ? start[j] : row[j];
    }
  }
  const T scale = T(1) / epsilon;
  for (int64_t i = 0; i < to.rows; ++i) {
    T* row = to.row(i);
    std::fill(row + to.columns, row + to.stride, T(0));
    for (int64_t j = 0; j < to.stride; j += lanes)
      store<T>(row + j, exp<T>((load<T>(row + j) - load<T>(start + j)) * scale));
    std::fill(row + to.columns, row + to.stride, T(0));
  }
  for (int64_t j = 0; j < to.stride; j += lanes) store<T>(start + j, exp<T>(load<T>(start + j) * scale));
  std::fill(start + to.columns, start + to.stride, T(0));
}

// to = factors / last, at most √(the largest number): a matrix of `count` rows as wide as `last`.
template <typename T>
void relative_factors(const T* factors, int64_t stride, const T* last, int64_t count, int64_t width, T* to) {
  const T limit = std::sqrt(std::numeric_limits<T>::max());
  for (int64_t t = 0; t < count; ++t)
    for (int64_t j = 0; j < width; ++j) {
      const T ratio = factors[t * stride + j] / last[j];
      to[t * width + j] = ratio > limit ? limit : ratio;  // NaN stays
    }
}

template <typename T>
void transport_plan(const Transport& p, const T* cost, T* plan, T* rows, T* columns) {
  for_each_item(p.images, p.work() > 100'000, [&](int64_t image) {
    const Padded<T> kernel(p.rows, p.columns);
    Scratch<T> lefts(p.iterations * p.rows), rights((p.iterations + 1) * kernel.stride), sums(kernel.stride);
    gibbs_kernel<T>(cost + image * p.rows * p.columns, T(p.epsilon), kernel, rights);
    const T *left = nullptr, *right = rights;
    for (int64_t n = 0; n < p.iterations; ++n) {
      T *next_left = lefts + n * p.rows, *next = rights + (n + 1) * kernel.stride;
      sweep<T>(kernel, right, next_left, sums, [](int64_t, T product) { return T(1) / product; });
      std::fill(next + p.columns, next + kernel.stride, T(0));
      for (int64_t j = 0; j < p.columns; ++j) next[j] = T(1) / sums[j];
      left = next_left, right = next;
    }
    for (int64_t i = 0; i < p.rows; ++i) {
      T* to = plan + (image * p.rows + i) * p.columns;
      for (int64_t j = 0; j < p.columns; ++j) to[j] = kernel.row(i)[j] * left[i] * right[j];
    }
    relative_factors<T>(lefts, p.rows, left, p.iterations, p.rows, rows + image * p.iterations * p.rows);
    const int64_t steps = p.iterations + 1;
    relative_factors<T>(rights, kernel.stride, right, steps, p.columns, columns + image * steps * p.columns);
  });
}

// The largest distance of a value from the mean.
template <typename T>
T spread(const T* values, int64_t count) {
  T mean = 0, most = 0;
  for (int64_t j = 0; j < count; ++j) mean += values[j] / T(count);
  for (int64_t j = 0; j < count; ++j) most = std::abs(values[j] - mean) <= most ? most : std::abs(values[j] - mean);
  return most;
}

// Gradient to the cost, through the iterations from the last to the first: `left` and `right` take two rows for each,
// and what they take from the gradient is the plan times their product. Once scaling has converged the vectors shrink
// from step to step, but for a constant, which cancels; where the rest is below rounding nothing is left to add.
template <typename T>
void transport_plan_gradient(
    const Transport& p, const T* grad, const T* plan, const T* rows, const T* columns, T* grad_cost) {
  for_each_item(p.images, p.work() > 100'000, [&](int64_t image) {
    const Padded<T> matrix(p.rows, p.columns);
    const int64_t most = 2 * p.iterations, at = image * p.rows * p.columns;
    Scratch<T> left(most * p.rows), right(most * matrix.stride), sums(matrix.stride);
    Scratch<T> of_rows(p.rows), of_columns(matrix.stride);
    std::fill_n(static_cast<T*>(right), most * matrix.stride, T(0));
    std::fill_n(static_cast<T*>(of_columns), matrix.stride, T(0));
    for (int64_t i = 0; i < p.rows; ++i) {
      const T* from = plan + at + i * p.columns;
      T* weighted = grad_cost + at + i * p.columns;
      std::copy_n(from, p.columns, matrix.row(i));
      std::fill(matrix.row(i) + p.columns, matrix.row(i) + matrix.stride, T(0));
      T total = 0;
      for (int64_t j = 0; j < p.columns; ++j) {
        weighted[j] = grad[at + i * p.columns + j] * from[j];
        total += weighted[j];
        of_columns[j] += weighted[j];
      }
      of_rows[i] = total;
    }
    T size = 0;
    for (int64_t j = 0; j < p.columns; ++j) size = std::max(size, std::abs(of_columns[j]));
    const T rounding = size * std::numeric_limits<T>::epsilon() / 16;
    int64_t depth = 0;
    for (int64_t t = p.iterations - 1; t >= 0; --t, depth += 2) {
      if (depth && spread<T>(of_columns, p.columns) <= rounding) break;
      const T* row_factors = rows + (image * p.iterations + t) * p.rows;
      const T* before = columns + (image * (p.iterations + 1) + t) * p.columns;
      const T* after = before + p.columns;
      T *plain = left + depth * p.rows, *weighted = plain + p.rows;
      T *scaled = right + depth * matrix.stride, *earlier = scaled + matrix.stride;
      std::copy_n(row_factors, p.rows, plain);
      std::copy_n(before, p.columns, earlier);
      for (int64_t j = 0; j < p.columns; ++j) scaled[j] = after[j] * of_columns[j];
      sweep<T>(matrix, scaled, weighted, sums, [&](int64_t i, T product) {
        return row_factors[i] * (of_rows[i] - row_factors[i] * product);
      });
      for (int64_t j = 0; j < p.columns; ++j) of_columns[j] = -before[j] * sums[j];
      std::fill_n(static_cast<T*>(of_rows), p.rows, T(0));
    }
    constexpr int64_t block = ROW_BLOCK_ROWS;
    Scratch<T> packed(depth * round_up(p.columns, panel_width<T>())), taken(block * p.columns);
    pack<T>(right, depth, p.columns, matrix.stride, packed);
    const T scale = T(1) / T(p.epsilon);
    for (int64_t first = 0; first < p.rows; first += block) {
      const int64_t count = std::min(block, p.rows - first);
      multiply<T>(left + first, 1, p.rows, count, packed, depth, p.columns, taken, p.columns, false);
      for (int64_t i = 0; i < count; ++i) {
        T* to = grad_cost + at + (first + i) * p.columns;
        const T *row = matrix.row(first + i), *less = taken + i * p.columns;
        for (int64_t j = 0; j < p.columns; ++j) to[j] = (to[j] - row[j] * less[j]) * scale;
      }
    }
  });
}
