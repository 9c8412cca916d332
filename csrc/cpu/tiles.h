// Products of bfloat16 matrices, summed in float32, by AMX's tiles. Included in amx.cpp, inside its namespace.
//
// Operands lie in blocks of 16 x 32 values, a tile each. Of A [rows, depth] a block holds 16 rows, 32 values of each.
// Of B [depth, columns] it holds 16 columns, and in its row k their values at depth 2k and 2k + 1, side by side
// [L: Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter on AMX].

constexpr int64_t SIDE = 16, DEPTH = 32, BLOCK = SIDE * DEPTH;
constexpr int64_t STEP = 2 * SIDE;  // rows and columns of C come in so many, and so does the depth
static_assert(STEP == DEPTH);

// All eight tiles are 16 rows of 64 bytes on this thread until the end of the scope; then as they were before.
class TilesInUse {
 public:
  TilesInUse() {
    _tile_storeconfig(before_);
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;
      config[48 + tile] = SIDE;
    }
    barrier();
    _tile_loadconfig(config);
  }
  ~TilesInUse() {
    if (before_[0])
      _tile_loadconfig(before_);
    else
      _tile_release();
  }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
  static void barrier() { asm volatile("" ::: "memory"); }  // GCC's loads do not say that they read memory

 private:
  alignas(64) uint8_t before_[64];
};

// C [32, 32] = (add ? C : 0) + A · B, so many blocks deep; A's second row of blocks and B's second column of them are
// `a_next` and `b_next` values behind the first, C's rows `c_row` apart.
inline void multiply_square(
    const BFloat16* a, int64_t a_next, const BFloat16* b, int64_t b_next, int64_t blocks, float* c, int64_t c_row,
    bool add) {
  constexpr long line = 64;
  const long c_line = long(c_row * sizeof(float));
  float* const below = c + SIDE * c_row;
  TilesInUse::barrier();
  if (add) {
    _tile_loadd(0, c, c_line);
    _tile_loadd(1, c + SIDE, c_line);
    _tile_loadd(2, below, c_line);
    _tile_loadd(3, below + SIDE, c_line);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < blocks; ++k, a += BLOCK, b += BLOCK) {
    _tile_loadd(4, a, line);
    _tile_loadd(6, b, line);
    _tile_loadd(7, b + b_next, line);
    _tile_loadd(5, a + a_next, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_line);
  _tile_stored(1, c + SIDE, c_line);
  _tile_stored(2, below, c_line);
  _tile_stored(3, below + SIDE, c_line);
}

// The same for C [rows, columns], both multiples of STEP; rows and columns of blocks are `a_next` and `b_next` values
// apart.
inline void multiply_blocks(
    const BFloat16* a, int64_t a_next, const BFloat16* b, int64_t b_next, int64_t blocks, int64_t rows, int64_t columns,
    float* c, int64_t c_row, bool add) {
  for (int64_t j = 0; j < columns; j += STEP)
    for (int64_t i = 0; i < rows; i += STEP)
      multiply_square(
          a + i / SIDE * a_next, a_next, b + j / SIDE * b_next, b_next, blocks, c + i * c_row + j, c_row, add);
}

// A block as 16 vectors of 32-bit words, each of them a pair of values.
struct Words {
  FloatVec row[SIDE];
  void turn() { transpose<float>(row); }
  void put(BFloat16* block) const {
    for (int64_t k = 0; k < SIDE; ++k) __builtin_memcpy(block + k * DEPTH, &row[k], sizeof(FloatVec));
  }
};

// So many values and zeros behind them; a whole vector of them without a call.
template <typename V>
inline V values_or_zeros(const BFloat16* from, int64_t count) {
  V values = {};
  if (count * int64_t(sizeof(BFloat16)) >= int64_t(sizeof(V)))
    __builtin_memcpy(&values, from, sizeof(V));
  else if (count > 0)
    __builtin_memcpy(&values, from, size_t(count) * sizeof(BFloat16));
  return values;
}

// Pairs of neighbouring values of 16 rows.
inline Words words_of_rows(const BFloat16* from, int64_t stride, int64_t rows, int64_t columns) {
  Words words;
  for (int64_t r = 0; r < SIDE; ++r)
    words.row[r] = values_or_zeros<FloatVec>(from + r * stride, r < rows ? columns : 0);
  return words;
}

// Pairs of values that stand below each other, of 32 rows.
inline Words words_of_pairs(const BFloat16* from, int64_t stride, int64_t rows, int64_t columns) {
  const auto values = [&](int64_t r) {
    const ShortVec bits = values_or_zeros<ShortVec>(from + r * stride, r < rows ? columns : 0);
    return __builtin_convertvector(bits, UnsignedVec);
  };
  Words words;
  for (int64_t k = 0; k < SIDE; ++k) words.row[k] = same_bits<FloatVec>(values(2 * k) | values(2 * k + 1) << 16);
  return words;
}

// A matrix [rows, columns], rows `stride` apart, in blocks, zeros where there is none of it: as A, so many whole rows,
// one row of blocks behind the other; or turned, which is its transpose as B.
inline void block_rows(
    const BFloat16* from, int64_t stride, int64_t rows, int64_t columns, int64_t whole_rows, bool turned,
    BFloat16* to) {
  for (int64_t i = 0; i < whole_rows; i += SIDE)
    for (int64_t k = 0; k < columns; k += DEPTH, to += BLOCK) {
      Words words = words_of_rows(from + i * stride + k, stride, rows - i, columns - k);
      if (turned) words.turn();
      words.put(to);
    }
}

// The same as B, so many whole rows and columns, one column of blocks behind the other; or turned, its transpose as A.
inline void block_pairs(
    const BFloat16* from, int64_t stride, int64_t rows, int64_t columns, int64_t whole_rows, int64_t whole_columns,
    bool turned, BFloat16* to) {
  for (int64_t j = 0; j < whole_columns; j += SIDE)
    for (int64_t k = 0; k < whole_rows; k += DEPTH, to += BLOCK) {
      Words words = words_of_pairs(from + k * stride + j, stride, rows - k, columns - j);
      if (turned) words.turn();
      words.put(to);
    }
}

// Where the value of row i and depth k of A stands, so many blocks deep.
inline int64_t place_in_rows(int64_t i, int64_t k, int64_t blocks) {
  return (i / SIDE * blocks + k / DEPTH) * BLOCK + i % SIDE * DEPTH + k % DEPTH;
}

// 16 values rounded to bfloat16, to the nearest, ties to even; subnormal ones are 0.
inline ShortVec rounded(FloatVec v) { return same_bits<ShortVec>(_mm512_cvtneps_pbh(same_bits<__m512>(v))); }

// So many of them, 16 at most.
inline void put_rounded(FloatVec v, int64_t count, BFloat16* to) {
  const ShortVec bits = rounded(v);
  __builtin_memcpy(to, &bits, count >= SIDE ? sizeof(bits) : size_t(count) * sizeof(BFloat16));
}

// The same places of two rows, side by side.
inline void put_pair(const FloatVec* rows, BFloat16* to) {
  const auto wide = [](FloatVec row) { return __builtin_convertvector(rounded(row), UnsignedVec); };
  const UnsignedVec pair = wide(rows[0]) | wide(rows[1]) << 16;
  __builtin_memcpy(to, &pair, sizeof(pair));
}

// body(row) for each STEP rows.
template <typename Body>
void for_each_step(int64_t rows, const Body& body) {
  parallel_for(0, (rows + STEP - 1) / STEP, 2, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) body(n * STEP);
  });
}
