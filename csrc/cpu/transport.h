// Entropic optimal transport by Sinkhorn's iterations, and its gradient at the fixed point: fastsketch/reference/transport.py.
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

template <typename T>
void transport_plan(const Transport& p, const T* cost, T* plan) {
  for_each_item(p.images, p.work() > 100'000, [&](int64_t image) {
    const Padded<T> kernel(p.rows, p.columns);
    Scratch<T> left(p.rows), right(kernel.stride), sums(kernel.stride);
    gibbs_kernel<T>(cost + image * p.rows * p.columns, T(p.epsilon), kernel, right);
    for (int64_t n = 0; n < p.iterations; ++n) {
      sweep<T>(kernel, right, left, sums, [](int64_t, T product) { return T(1) / product; });
      for (int64_t j = 0; j < p.columns; ++j) right[j] = T(1) / sums[j];
    }
    for (int64_t i = 0; i < p.rows; ++i) {
      T* to = plan + (image * p.rows + i) * p.columns;
      for (int64_t j = 0; j < p.columns; ++j) to[j] = kernel.row(i)[j] * left[i] * right[j];
    }
  });
}

// Gradient to the cost: with G = grad ⊙ P, solves P1 ⊙ λ + P μ = G 1, Pᵀ λ + Pᵀ1 ⊙ μ = Gᵀ 1 by the same sweeps.
template <typename T>
void transport_plan_gradient(const Transport& p, const T* grad, const T* plan, T* grad_cost) {
  for_each_item(p.images, p.work() > 100'000, [&](int64_t image) {
    const Padded<T> matrix(p.rows, p.columns);
    Scratch<T> of_rows(p.rows), of_columns(matrix.stride), left(p.rows), right(matrix.stride), sums(matrix.stride);
    Scratch<T> row_sums(p.rows), column_sums(matrix.stride);
    std::fill_n(static_cast<T*>(of_columns), matrix.stride, T(0));
    std::fill_n(static_cast<T*>(column_sums), matrix.stride, T(0));
    std::fill_n(static_cast<T*>(right), matrix.stride, T(0));
    const int64_t at = image * p.rows * p.columns;
    for (int64_t i = 0; i < p.rows; ++i) {
      const T* from = plan + at + i * p.columns;
      T* weighted = grad_cost + at + i * p.columns;
      std::copy_n(from, p.columns, matrix.row(i));
      std::fill(matrix.row(i) + p.columns, matrix.row(i) + matrix.stride, T(0));
      T total = 0, sum = 0;
      for (int64_t j = 0; j < p.columns; ++j) {
        weighted[j] = grad[at + i * p.columns + j] * from[j];
        total += weighted[j];
        of_columns[j] += weighted[j];
        sum += from[j];
        column_sums[j] += from[j];
      }
      of_rows[i] = total;
      row_sums[i] = sum > 0 ? sum : T(1);
    }
    for (int64_t j = 0; j < matrix.stride; ++j) column_sums[j] = column_sums[j] > 0 ? column_sums[j] : T(1);
    for (int64_t n = 0; n < p.iterations; ++n) {
      sweep<T>(matrix, right, left, sums, [&](int64_t i, T product) {
        return (of_rows[i] - product) / row_sums[i];
      });
      for (int64_t j = 0; j < matrix.stride; ++j) right[j] = (of_columns[j] - sums[j]) / column_sums[j];
    }
    const T scale = T(1) / T(p.epsilon);
    for (int64_t i = 0; i < p.rows; ++i) {
      T* to = grad_cost + at + i * p.columns;
      for (int64_t j = 0; j < p.columns; ++j) to[j] = (to[j] - matrix.row(i)[j] * (left[i] + right[j])) * scale;
    }
  });
}
