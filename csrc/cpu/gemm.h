// Products of small matrices: B packed in panels of columns, C kept in registers.
// The sum over the depth is taken in order, so an entry does not depend on the tile it falls in.
// Included once for each instruction set, inside its namespace.

template <typename T>
constexpr int panel_width() {
  return 2 * Lanes<T>::count;
}

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Panels of B [depth, columns], given as its transpose [columns, depth] with rows `stride` apart; zeros fill the last.
template <typename T>
void pack_transposed(const T* from, int64_t columns, int64_t depth, int64_t stride, T* to) {
  constexpr int width = panel_width<T>();
  constexpr int lanes = Lanes<T>::count;
  for (int64_t j = 0; j < columns; j += width, to += width * depth) {
    const int64_t valid = std::min<int64_t>(width, columns - j);
    int64_t k = 0;
    if (valid == width) {
      for (; k + lanes <= depth; k += lanes)
        for (int half = 0; half < width; half += lanes) {
          Vec<T> square[lanes];
#pragma GCC unroll 16
          for (int c = 0; c < lanes; ++c) square[c] = load<T>(from + (j + half + c) * stride + k);
          transpose<T>(square);
#pragma GCC unroll 16
          for (int d = 0; d < lanes; ++d) store<T>(to + (k + d) * width + half, square[d]);
        }
    }
    for (; k < depth; ++k)
      for (int c = 0; c < width; ++c) to[k * width + c] = c < valid ? from[(j + c) * stride + k] : T(0);
  }
}

// Rows packed at a time: they and what is written for them stay in the first-level cache.
constexpr int64_t PACK_ROWS = 8;

// Panels of B [depth, columns] with rows `stride` apart.
template <typename T>
void pack(const T* from, int64_t depth, int64_t columns, int64_t stride, T* to) {
  constexpr int width = panel_width<T>();
  for (int64_t k0 = 0; k0 < depth; k0 += PACK_ROWS)
    for (int64_t j = 0; j < columns; j += width) {
      const int64_t valid = std::min<int64_t>(width, columns - j);
      for (int64_t k = k0; k < std::min(k0 + PACK_ROWS, depth); ++k) {
        const T* row = from + k * stride + j;
        T* panel = to + j * depth + k * width;
        if (valid == width) {
          store<T>(panel, load<T>(row));
          store<T>(panel + Lanes<T>::count, load<T>(row + Lanes<T>::count));
        } else {
          for (int c = 0; c < width; ++c) panel[c] = c < valid ? row[c] : T(0);
        }
      }
    }
}

// C [ROWS, valid columns] = (add ? C : 0) + A · panel; A's rows are `a_row` apart, its columns `a_column`.
template <typename T, int ROWS>
inline void micro_kernel(
    const T* a, int64_t a_row, int64_t a_column, const T* panel, int64_t depth, T* c, int64_t c_row, int64_t valid,
    bool add) {
  constexpr int lanes = Lanes<T>::count;
  Vec<T> sum[ROWS][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<T> b0 = load<T>(panel);
    const Vec<T> b1 = load<T>(panel + lanes);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const Vec<T> x = broadcast<T>(a[i * a_row]);
      sum[i][0] += x * b0;
      sum[i][1] += x * b1;
    }
    a += a_column;
    panel += 2 * lanes;
  }
  if (valid == 2 * lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      T* to = c + i * c_row;
      store<T>(to, add ? load<T>(to) + sum[i][0] : sum[i][0]);
      store<T>(to + lanes, add ? load<T>(to + lanes) + sum[i][1] : sum[i][1]);
    }
    return;
  }
  T edge[ROWS][2 * lanes];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    store<T>(edge[i], sum[i][0]);
    store<T>(edge[i] + lanes, sum[i][1]);
  }
  for (int i = 0; i < ROWS; ++i)
    for (int64_t j = 0; j < valid; ++j) c[i * c_row + j] = (add ? c[i * c_row + j] : T(0)) + edge[i][j];
}

template <typename T, int ROWS>
inline void micro_kernel_of(
    int64_t rows, const T* a, int64_t a_row, int64_t a_column, const T* panel, int64_t depth, T* c, int64_t c_row,
    int64_t valid, bool add) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) {
      micro_kernel_of<T, ROWS - 1>(rows, a, a_row, a_column, panel, depth, c, c_row, valid, add);
      return;
    }
  }
  micro_kernel<T, ROWS>(a, a_row, a_column, panel, depth, c, c_row, valid, add);
}

// Depth of a product done at a time: so much of a panel stays in the first-level cache.
constexpr int64_t DEPTH_BLOCK = 256;

// C [rows, columns] = (add ? C : 0) + A [rows, depth] · B, B packed.
template <typename T>
void multiply(
    const T* a, int64_t a_row, int64_t a_column, int64_t rows, const T* packed, int64_t depth, int64_t columns, T* c,
    int64_t c_row, bool add) {
  constexpr int width = panel_width<T>();
  for (int64_t k = 0; k < depth; k += DEPTH_BLOCK)
    for (int64_t j = 0; j < columns; j += width) {
      const T* panel = packed + j * depth + k * width;
      const int64_t valid = std::min<int64_t>(width, columns - j);
      for (int64_t i = 0; i < rows; i += ROW_BLOCK)
        micro_kernel_of<T, ROW_BLOCK>(
            rows - i, a + i * a_row + k * a_column, a_row, a_column, panel, std::min(DEPTH_BLOCK, depth - k),
            c + i * c_row + j, c_row, valid, add || k > 0);
    }
}

// Asks for `rows` rows of `count` values, `stride` apart, to be brought into the cache: a share of them at each step.
template <typename T>
class RowsAhead {
 public:
  RowsAhead(const T* from, int64_t rows, int64_t count, int64_t stride, int64_t steps)
      : row_(from), rows_(rows), count_(count), stride_(stride) {
    share_ = (rows * ((count + LINE - 1) / LINE) + steps - 1) / steps;
  }
  void step() {
    for (int64_t n = 0; n < share_ && rows_ > 0; ++n) {
      __builtin_prefetch(row_ + at_);
      if ((at_ += LINE) < count_) continue;
      at_ = 0;
      row_ += stride_;
      --rows_;
    }
  }

 private:
  static constexpr int64_t LINE = 64 / sizeof(T);
  const T* row_;
  int64_t rows_, count_, stride_, share_, at_ = 0;
};

// C [rows, columns] = A [rows, depth] · Bᵀ, B [columns, depth] as it lies in memory; rows of each are contiguous. A panel
// is packed just before all rows of A meet it, and stays in the first-level cache; the next one is fetched meanwhile,
// and so are A's rows the first time. `panel` has room for DEPTH_BLOCK · panel_width values.
template <typename T>
void multiply_transposed(
    const T* a, int64_t a_row, int64_t rows, const T* b, int64_t b_row, int64_t depth, int64_t columns, T* c,
    int64_t c_row, T* panel) {
  constexpr int width = panel_width<T>();
  const int64_t blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
  for (int64_t j = 0; j < columns; j += width)
    for (int64_t k = 0; k < depth; k += DEPTH_BLOCK) {
      const int64_t count = std::min(DEPTH_BLOCK, depth - k);
      const int64_t valid = std::min<int64_t>(width, columns - j), next = std::min<int64_t>(width, columns - j - valid);
      RowsAhead<T> next_panel(b + (j + valid) * b_row + k, next, count, b_row, blocks);
      RowsAhead<T> next_rows(a + ROW_BLOCK * a_row + k, j == 0 ? rows - ROW_BLOCK : 0, count, a_row, blocks);
      pack_transposed<T>(b + j * b_row + k, valid, count, b_row, panel);
      for (int64_t i = 0; i < rows; i += ROW_BLOCK) {
        next_panel.step();
        next_rows.step();
        micro_kernel_of<T, ROW_BLOCK>(
            rows - i, a + i * a_row + k, a_row, 1, panel, count, c + i * c_row + j, c_row, valid, k > 0);
      }
    }
}

// C [rows, columns] = (add ? C : 0) + Aᵀ · B with A [depth, rows] in blocks of ROW_BLOCK columns (`pack_columns`), B packed.
template <typename T>
void multiply_packed(
    const T* a, int64_t rows, const T* packed, int64_t depth, int64_t columns, T* c, int64_t c_row, bool add) {
  constexpr int width = panel_width<T>();
  for (int64_t j = 0; j < columns; j += width)
    for (int64_t i = 0; i < rows; i += ROW_BLOCK)
      micro_kernel_of<T, ROW_BLOCK>(
          rows - i, a + i * depth, 1, ROW_BLOCK, packed + j * depth, depth, c + i * c_row + j, c_row,
          std::min<int64_t>(width, columns - j), add);
}

// A [depth, columns], rows `stride` apart, in blocks of ROW_BLOCK columns: what a row block of Aᵀ needs, in order.
template <typename T>
void pack_columns(const T* from, int64_t depth, int64_t columns, int64_t stride, T* to) {
  for (int64_t k0 = 0; k0 < depth; k0 += PACK_ROWS)
    for (int64_t i = 0; i < columns; i += ROW_BLOCK) {
      const int64_t valid = std::min<int64_t>(ROW_BLOCK, columns - i);
      for (int64_t k = k0; k < std::min(k0 + PACK_ROWS, depth); ++k) {
        const T* row = from + k * stride + i;
        T* block = to + i * depth + k * ROW_BLOCK;
        if (valid == ROW_BLOCK) {
          __builtin_memcpy(block, row, ROW_BLOCK * sizeof(T));
        } else {
          for (int64_t r = 0; r < ROW_BLOCK; ++r) block[r] = r < valid ? row[r] : T(0);
        }
      }
    }
}

// Both sides of a product Aᵀ · B packed, a block of the depth at a time; for products of so many rows and columns at most.
template <typename T>
struct PackedSides {
  PackedSides(int64_t rows, int64_t columns)
      : left(DEPTH_BLOCK * round_up(rows, ROW_BLOCK)), right(DEPTH_BLOCK * round_up(columns, panel_width<T>())) {}
  Scratch<T> left, right;
};

// C [rows, columns] = (add ? C : 0) + Aᵀ · B, of `rows` columns of A; rows of A [depth, ...] are `a_row` apart.
template <typename T>
void multiply_columns(
    const T* a, int64_t a_row, const T* b, int64_t b_row, int64_t depth, int64_t rows, int64_t columns, T* c,
    int64_t c_row, bool add, const PackedSides<T>& packed) {
  for (int64_t k = 0; k < depth; k += DEPTH_BLOCK) {
    const int64_t count = std::min(DEPTH_BLOCK, depth - k);
    pack_columns<T>(a + k * a_row, count, rows, a_row, packed.left);
    pack<T>(b + k * b_row, count, columns, b_row, packed.right);
    multiply_packed<T>(packed.left, rows, packed.right, count, columns, c, c_row, add || k > 0);
  }
}
