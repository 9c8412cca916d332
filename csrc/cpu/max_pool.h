// Maps halved by the largest of each 2x2 square, and the gradient, which goes to the first of the largest.
// Included once for each instruction set.

// Numbers or vectors of them: whether the later is larger, or broken. NaN stays visible.
template <typename V>
inline auto later_wins(V first, V later) {
  return (later > first) | (later != later);
}

template <typename V>
inline V larger(V first, V later) {
  return later_wins(first, later) ? later : first;
}

template <typename T, typename E>
void max_pool_map(const E* map, int64_t height, int64_t width, T* line, E* to) {
  const int64_t rows = height / 2, columns = width / 2;
  for (int64_t row = 0; row < rows; ++row, to += columns) {
    const E *upper = map + 2 * row * width, *lower = upper + width;
    for (int64_t x = 0; x < 2 * columns; ++x) line[x] = larger(T(upper[x]), T(lower[x]));
    for (int64_t x = 0; x < columns; ++x) to[x] = E(larger(line[2 * x], line[2 * x + 1]));
  }
}

// A square's values a b above c d become their gradients.
template <typename V>
inline void spread(V grad, V& a, V& b, V& c, V& d) {
  const auto right = later_wins(a, b), right_below = later_wins(c, d), below = later_wins(larger(a, b), larger(c, d));
  const V zero = V(), upper = below ? zero : grad, lower = below ? grad : zero;
  a = right ? zero : upper;
  b = right ? upper : zero;
  c = right_below ? zero : lower;
  d = right_below ? lower : zero;
}

template <typename T, typename E>
void max_pool_map_gradient(const E* grad, const E* map, int64_t height, int64_t width, E* to) {
  constexpr int lanes = Lanes<T>::count;
  constexpr std::make_integer_sequence<int, lanes> order;
  const int64_t rows = height / 2, columns = width / 2;
  for (int64_t row = 0; row < rows; ++row, grad += columns) {
    const E *upper = map + 2 * row * width, *lower = upper + width;
    E *above = to + 2 * row * width, *below = above + width;
    int64_t x = 0;
    for (; x + lanes <= columns; x += lanes) {
      Vec<T> a = load_values<T>(upper + 2 * x), b = load_values<T>(upper + 2 * x + lanes);
      Vec<T> c = load_values<T>(lower + 2 * x), d = load_values<T>(lower + 2 * x + lanes);
      take_apart<T>(a, b, order);
      take_apart<T>(c, d, order);
      spread(load_values<T>(grad + x), a, b, c, d);
      put_together<T>(a, b, order);
      put_together<T>(c, d, order);
      store_values<T>(above + 2 * x, a);
      store_values<T>(above + 2 * x + lanes, b);
      store_values<T>(below + 2 * x, c);
      store_values<T>(below + 2 * x + lanes, d);
    }
    for (; x < columns; ++x) {
      T a = T(upper[2 * x]), b = T(upper[2 * x + 1]), c = T(lower[2 * x]), d = T(lower[2 * x + 1]);
      spread(T(grad[x]), a, b, c, d);
      above[2 * x] = E(a);
      above[2 * x + 1] = E(b);
      below[2 * x] = E(c);
      below[2 * x + 1] = E(d);
    }
    if (width % 2) above[width - 1] = below[width - 1] = E(0);
  }
  if (height % 2) std::fill_n(to + (height - 1) * width, width, E(0));
}

template <typename E>
void max_pool_of(const MaxPool& s) {
  using T = Compute<E>;
  const int64_t full = s.height * s.width, half = (s.height / 2) * (s.width / 2);
  parallel_for(0, s.maps, 65536 / full + 1, [&](int64_t begin, int64_t end) {
    const E *x = static_cast<const E*>(s.x), *grad = static_cast<const E*>(s.grad);
    E* out = static_cast<E*>(s.out);
    const Scratch<T> line(s.width);
    for (int64_t n = begin; n < end; ++n)
      if (grad)
        max_pool_map_gradient<T>(grad + n * half, x + n * full, s.height, s.width, out + n * full);
      else
        max_pool_map<T>(x + n * full, s.height, s.width, line, out + n * half);
  });
}

inline void max_pool(const MaxPool& s) {
  with_elements(s.dtype, [&](auto element) { max_pool_of<decltype(element)>(s); });
}
