// Instance norm of channels-last images [size, channels], and its gradient. An image is cut into runs of positions that
// fit the first-level cache; what a run adds up for each channel is put together in double, in the runs' order.
// Included once for each instruction set.

// body(c, kind) for vectors of channels from c on, then for one channel at a time: `kind` is a Vec<T> or a T.
template <typename T, typename Body>
void for_each_channel(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + Lanes<T>::count <= channels; c += Lanes<T>::count) body(c, Vec<T>());
  for (; c < channels; ++c) body(c, T());
}

template <typename T, typename Kind, typename E>
Kind get(const E* from) {
  if constexpr (std::is_same_v<Kind, T>)
    return T(*from);
  else
    return load_values<T>(from);
}

template <typename T, typename Kind, typename E>
void put(E* to, Kind x) {
  if constexpr (std::is_same_v<Kind, T>)
    *to = E(x);
  else
    store_values<T>(to, x);
}

// Sum over i < count of term(i).
template <typename Kind, typename Term>
Kind sum_of(int64_t count, const Term& term) {
  Kind sum[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int k = 0; k < 4; ++k) sum[k] += term(i + k);
  for (; i < count; ++i) sum[0] += term(i);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <typename T, typename E>
struct ChannelsLastNorm {
  explicit ChannelsLastNorm(const InstanceNorm& norm)
      : s(norm),
        run(std::max<int64_t>(32768 / std::max<int64_t>(s.channels * int64_t(sizeof(E)), 1), 16)),
        runs((s.size + run - 1) / run),
        sums(2 * s.images * runs * s.channels) {}

  int64_t length(int64_t n) const { return std::min(run, s.size - n * run); }
  T* sums_of(int64_t image, int64_t n) const { return sums + 2 * (image * runs + n) * s.channels; }

  // body(image, n, offset of its first value) for each run n of each image.
  template <typename Body>
  void for_each_run(const Body& body) const {
    parallel_for(0, s.images * runs, 65536 / (run * s.channels + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        body(i / runs, i % runs, (i / runs * s.size + i % runs * run) * s.channels);
    });
  }

  void forward() const {
    const E* x = static_cast<const E*>(s.x);
    for_each_run([&](int64_t image, int64_t n, int64_t offset) {
      T *sum = sums_of(image, n), *squares = sum + s.channels;
      for_each_channel<T>(s.channels, [&](int64_t c, auto kind) {
        using Kind = decltype(kind);
        const auto at = [&](int64_t i) { return get<T, Kind>(x + offset + i * s.channels + c); };
        const Kind total = sum_of<Kind>(length(n), at), mean = total / T(length(n));
        put<T, Kind>(sum + c, total);
        put<T, Kind>(squares + c, sum_of<Kind>(length(n), [&](int64_t i) {
                       const Kind d = at(i) - mean;
                       return d * d;
                     }));
      });
    });
    for (int64_t image = 0; image < s.images; ++image)
      for (int64_t c = 0; c < s.channels; ++c) put_moments(image, c);
    E* out = static_cast<E*>(s.out);
    for_each_run([&](int64_t image, int64_t n, int64_t offset) {
      const T* mean = static_cast<T*>(s.mean) + image * s.channels;
      const T* scale = static_cast<T*>(s.scale) + image * s.channels;
      for (int64_t i = 0; i < length(n); ++i, offset += s.channels)
        for_each_channel<T>(s.channels, [&](int64_t c, auto kind) {
          using Kind = decltype(kind);
          const Kind z = (get<T, Kind>(x + offset + c) - get<T, Kind>(mean + c)) * get<T, Kind>(scale + c);
          put<T, Kind>(out + offset + c, z > T(0) ? z : z * T(s.slope));
        });
    });
  }

  // Mean and variance of the whole from those of its runs [L: Chan et al., Updating formulae for variances, 1979].
  void put_moments(int64_t image, int64_t c) const {
    double total = 0, squares = 0;
    for (int64_t n = 0; n < runs; ++n) total += double(sums_of(image, n)[c]);
    const double mean = total / double(s.size);
    for (int64_t n = 0; n < runs; ++n) {
      const double apart = double(sums_of(image, n)[c]) / double(length(n)) - mean;
      squares += double(sums_of(image, n)[s.channels + c]) + double(length(n)) * apart * apart;
    }
    static_cast<T*>(s.mean)[image * s.channels + c] = T(mean);
    static_cast<T*>(s.scale)[image * s.channels + c] = one_over_deviation<T>(squares / double(s.size), T(s.eps));
  }

  void backward() const {
    const E *x = static_cast<const E*>(s.x), *grad = static_cast<const E*>(s.grad);
    // z of a value, and the gradient to it. Behind a ReLU a gradient that is not finite does not pass either.
    const auto at = [&](int64_t i, auto mean, auto scale) {
      using Kind = decltype(mean);
      const Kind z = (get<T, Kind>(x + i) - mean) * scale, g = get<T, Kind>(grad + i);
      return std::pair(z, Kind(z > T(0) ? g : s.slope == 0 ? Kind{} : g * T(s.slope)));
    };
    for_each_run([&](int64_t image, int64_t n, int64_t offset) {
      const T* means = static_cast<T*>(s.mean) + image * s.channels;
      const T* scales = static_cast<T*>(s.scale) + image * s.channels;
      T *sum = sums_of(image, n), *product = sum + s.channels;
      for_each_channel<T>(s.channels, [&](int64_t c, auto kind) {
        using Kind = decltype(kind);
        const Kind mean = get<T, Kind>(means + c), scale = get<T, Kind>(scales + c);
        Kind products = {};
        put<T, Kind>(sum + c, sum_of<Kind>(length(n), [&](int64_t i) {
                       const auto [z, g] = at(offset + i * s.channels + c, mean, scale);
                       products += z * g;
                       return g;
                     }));
        put<T, Kind>(product + c, products);
      });
    });
    Scratch<T> means(2 * s.images * s.channels);  // of gradient, and of gradient times z
    for (int64_t image = 0; image < s.images; ++image)
      for (int64_t c = 0; c < 2 * s.channels; ++c) {
        double total = 0;
        for (int64_t n = 0; n < runs; ++n) total += double(sums_of(image, n)[c]);
        means[2 * image * s.channels + c] = T(total / double(s.size));
      }
    E* out = static_cast<E*>(s.out);
    for_each_run([&](int64_t image, int64_t n, int64_t offset) {
      const T* mean = static_cast<T*>(s.mean) + image * s.channels;
      const T* scale = static_cast<T*>(s.scale) + image * s.channels;
      const T *sum = means + 2 * image * s.channels, *product = sum + s.channels;
      for (int64_t i = 0; i < length(n); ++i, offset += s.channels)
        for_each_channel<T>(s.channels, [&](int64_t c, auto kind) {
          using Kind = decltype(kind);
          const Kind r = get<T, Kind>(scale + c);
          const auto [z, g] = at(offset + c, get<T, Kind>(mean + c), r);
          put<T, Kind>(out + offset + c, (g - get<T, Kind>(sum + c) - z * get<T, Kind>(product + c)) * r);
        });
    });
  }

  const InstanceNorm& s;
  const int64_t run, runs;
  Scratch<T> sums;  // [B, runs, 2, channels]
};

template <typename E>
void norm_channels_last(const InstanceNorm& s) {
  const ChannelsLastNorm<Compute<E>, E> norm(s);
  s.grad ? norm.backward() : norm.forward();
}

inline void instance_norm(const InstanceNorm& s) {
  with_elements(s.dtype, [&](auto element) {
    using E = decltype(element);
    s.channels_last ? norm_channels_last<E>(s) : norm_contiguous<E>(s);
  });
}
