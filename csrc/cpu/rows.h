// Rows of a tensor as contiguous values of the accumulation type.
// Included once for each instruction set, inside its namespace.

template <typename T, typename From>
inline void convert_row(const From* from, int64_t stride, int64_t n, T* to) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = T(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = T(from[i * stride]);
  }
}

// Row (image, row) of a [B, S, D] view.
template <typename T>
void load_row(const View& view, int64_t image, int64_t row, int64_t width, T* to) {
  const int64_t offset = image * view.stride[0] + row * view.stride[1];
  const int64_t stride = view.stride[2];
  with_elements(view.dtype, [&](auto element) {
    convert_row<T>(static_cast<const decltype(element)*>(view.data) + offset, stride, width, to);
  });
}

// The same row where it lies, if its values stand there as they are wanted; else a copy of it in `room`.
template <typename T>
const T* row_values(const View& view, int64_t image, int64_t row, int64_t width, T* room) {
  constexpr Dtype wanted = sizeof(T) == sizeof(float) ? Dtype::f32 : Dtype::f64;
  if (view.dtype == wanted && view.stride[2] == 1)
    return static_cast<const T*>(view.data) + image * view.stride[0] + row * view.stride[1];
  load_row(view, image, row, width, room);
  return room;
}

template <typename T>
inline T dot(const T* a, const T* b, int64_t n) {
  constexpr int lanes = Lanes<T>::count;
  Vec<T> sum0 = {}, sum1 = {};
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    sum0 += load<T>(a + i) * load<T>(b + i);
    sum1 += load<T>(a + i + lanes) * load<T>(b + i + lanes);
  }
  T total = sum_lanes<T>(sum0 + sum1);
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

template <typename T>
inline void scale_row(T* row, int64_t n, T factor) {
  for (int64_t i = 0; i < n; ++i) row[i] *= factor;
}

// The largest of a row's values and `least`. Up to `padded`, a multiple of the vector, the row is filled with -infinity.
template <typename T>
inline T fill_and_maximum(T* row, int64_t count, int64_t padded, T least) {
  constexpr int lanes = Lanes<T>::count;
  for (int64_t j = count; j < padded; ++j) row[j] = -std::numeric_limits<T>::infinity();
  Vec<T> best = broadcast<T>(least);
  for (int64_t j = 0; j < padded; j += lanes) {
    const Vec<T> z = load<T>(row + j);
    best = z > best ? z : best;
  }
  return max_lanes<T>(best);
}
