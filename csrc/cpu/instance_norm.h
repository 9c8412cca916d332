// Maps normalised to mean 0 and variance 1, and what is below 0 times a slope, in one visit; and the gradient. A map is
// read several times, from the second-level cache. Included once for each instruction set.

// Sum over i < count of term(i), which gives a vector from i on, or one value: in runs, their sums in double.
template <typename T, typename Term>
double sum_terms(int64_t count, const Term& term) {
  constexpr int64_t lanes = Lanes<T>::count, run = 256 * lanes;
  double total = 0;
  int64_t i = 0;
  while (i + lanes <= count) {
    Vec<T> even = {}, odd = {};
    const int64_t end = std::min(i + run, count);
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      even += term(i, Vec<T>());
      odd += term(i + lanes, Vec<T>());
    }
    if (i + lanes <= end) {
      even += term(i, Vec<T>());
      i += lanes;
    }
    total += double(sum_lanes<T>(even + odd));
  }
  for (; i < count; ++i) total += double(term(i, T()));
  return total;
}

// Not a number for a variance out of range: no map of zeros comes of it.
template <typename T>
T one_over_deviation(double variance, T eps) {
  const T deviation = T(std::sqrt(variance + double(eps)));
  return std::isfinite(deviation) ? T(1) / deviation : std::numeric_limits<T>::quiet_NaN();
}

template <typename T, typename E>
void normalize_map(const E* x, int64_t count, T slope, T eps, E* y, T* mean, T* scale) {
  constexpr int64_t lanes = Lanes<T>::count;
  const auto at = [&](int64_t i, auto kind) {
    if constexpr (std::is_same_v<decltype(kind), T>)
      return T(x[i]);
    else
      return load_values<T>(x + i);
  };
  const T m = *mean = T(sum_terms<T>(count, at) / double(count));
  const double squares = sum_terms<T>(count, [&](int64_t i, auto kind) {
    const auto d = at(i, kind) - m;
    return d * d;
  });
  const T r = *scale = one_over_deviation<T>(squares / double(count), eps);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vec<T> z = (load_values<T>(x + i) - m) * r;
    store_values<T>(y + i, z > T(0) ? z : z * slope);
  }
  for (; i < count; ++i) {
    const T z = (T(x[i]) - m) * r;
    y[i] = E(z > T(0) ? z : z * slope);
  }
}

template <typename T, typename E>
void normalize_map_gradient(const E* grad, const E* x, int64_t count, T slope, T mean, T scale, E* grad_x) {
  constexpr int64_t lanes = Lanes<T>::count;
  // z, and the gradient to it, from i on. Behind a ReLU a gradient that is not finite does not pass either.
  const auto at = [&](int64_t i, auto kind) {
    if constexpr (std::is_same_v<decltype(kind), T>) {
      const T z = (T(x[i]) - mean) * scale, g = T(grad[i]);
      return std::pair(z, z > T(0) ? g : slope == T(0) ? T(0) : g * slope);
    } else {
      const Vec<T> z = (load_values<T>(x + i) - mean) * scale, g = load_values<T>(grad + i);
      return std::pair(z, Vec<T>(z > T(0) ? g : slope == T(0) ? Vec<T>{} : g * slope));
    }
  };
  const T sum = T(sum_terms<T>(count, [&](int64_t i, auto kind) { return at(i, kind).second; }) / double(count));
  const T product = T(
      sum_terms<T>(
          count,
          [&](int64_t i, auto kind) {
            const auto [z, g] = at(i, kind);
            return z * g;
          }) /
      double(count));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto [z, g] = at(i, Vec<T>());
    store_values<T>(grad_x + i, (g - sum - z * product) * scale);
  }
  for (; i < count; ++i) {
    const auto [z, g] = at(i, T());
    grad_x[i] = E((g - sum - z * product) * scale);
  }
}

template <typename E>
void norm_contiguous(const InstanceNorm& s) {
  using T = Compute<E>;
  const int64_t least = 65536 / std::max<int64_t>(s.size, 1) + 1;
  parallel_for(0, s.images * s.channels, least, [&](int64_t begin, int64_t end) {
    const E *x = static_cast<const E*>(s.x), *grad = static_cast<const E*>(s.grad);
    T *mean = static_cast<T*>(s.mean), *scale = static_cast<T*>(s.scale);
    for (int64_t n = begin; n < end; ++n) {
      E* out = static_cast<E*>(s.out) + n * s.size;
      if (grad)
        normalize_map_gradient<T, E>(grad + n * s.size, x + n * s.size, s.size, T(s.slope), mean[n], scale[n], out);
      else
        normalize_map<T, E>(x + n * s.size, s.size, T(s.slope), T(s.eps), out, mean + n, scale + n);
    }
  });
}
