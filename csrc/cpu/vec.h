// Vectors of VECTOR_BYTES, by the compiler's vector extension (GCC and clang, any processor).
// Included once for each instruction set, inside its namespace.

template <typename T>
struct Lanes {
  static constexpr int count = VECTOR_BYTES / int(sizeof(T));
};

typedef float FloatVec __attribute__((vector_size(VECTOR_BYTES)));
typedef double DoubleVec __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t LongVec __attribute__((vector_size(VECTOR_BYTES)));

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
  using Type = FloatVec;
  using Int = IntVec;
};
template <>
struct VecOf<double> {
  using Type = DoubleVec;
  using Int = LongVec;
};
template <typename T>
using Vec = typename VecOf<T>::Type;

template <typename T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
inline void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

// So many values as a vector holds, of any dtype.
template <typename T, typename E>
inline Vec<T> load_values(const E* from) {
  if constexpr (std::is_same_v<T, E>) return load<T>(from);
  T values[Lanes<T>::count];
  for (int i = 0; i < Lanes<T>::count; ++i) values[i] = T(from[i]);
  return load<T>(values);
}

template <typename T, typename E>
inline void store_values(E* to, Vec<T> v) {
  if constexpr (std::is_same_v<T, E>) return store<T>(to, v);
  for (int i = 0; i < Lanes<T>::count; ++i) to[i] = E(v[i]);
}

typedef uint16_t ShortVec __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t UnsignedVec __attribute__((vector_size(VECTOR_BYTES)));

template <typename To, typename From>
inline To same_bits(From from) {
  To to;
  static_assert(sizeof(to) == sizeof(from));
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <>
inline FloatVec load_values<float, BFloat16>(const BFloat16* from) {
  ShortVec bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return same_bits<FloatVec>(__builtin_convertvector(bits, UnsignedVec) << 16);
}

template <>
inline void store_values<float, BFloat16>(BFloat16* to, FloatVec v) {  // to the nearest, ties to even; NaN stays NaN
  const UnsignedVec wide = same_bits<UnsignedVec>(v);
  const UnsignedVec rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  const ShortVec bits = __builtin_convertvector(v == v ? rounded : rounded * 0 + 0x7fc0, ShortVec);
  __builtin_memcpy(to, &bits, sizeof(bits));
}

template <>
inline FloatVec load_values<float, Half>(const Half* from) {
  ShortVec bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  const UnsignedVec wide = __builtin_convertvector(bits, UnsignedVec), moved = (wide & 0x7fff) << 13;
  const FloatVec normal = same_bits<FloatVec>(moved + (112U << 23));
  const FloatVec subnormal = same_bits<FloatVec>(moved + (113U << 23)) - 0x1p-14F;  // of float16; of float32 none is made
  const FloatVec size = moved < (1U << 23) ? subnormal : normal;
  const UnsignedVec broken = same_bits<UnsignedVec>(size >= 65536.F) & 0x7f800000;  // infinite or NaN
  return same_bits<FloatVec>(same_bits<UnsignedVec>(size) | broken | (wide & 0x8000) << 16);
}

template <>
inline void store_values<float, Half>(Half* to, FloatVec v) {  // to the nearest, ties to even; NaN stays NaN
  const UnsignedVec wide = same_bits<UnsignedVec>(v), size = wide & 0x7fffffff;
  const FloatVec positive = same_bits<FloatVec>(size);
  const UnsignedVec normal = (size - (112U << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  const UnsignedVec subnormal = same_bits<UnsignedVec>(positive + 0.5F) - 0x3f000000;  // the addition rounds
  UnsignedVec rounded = positive < 0x1p-14F ? subnormal : normal;
  rounded = positive < 65536.F ? rounded : rounded * 0 + 0x7c00;
  rounded = v == v ? rounded : rounded * 0 + 0x7e00;
  const ShortVec bits = __builtin_convertvector(rounded | (wide >> 16 & 0x8000), ShortVec);
  __builtin_memcpy(to, &bits, sizeof(bits));
}

template <typename T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0 is x, and becomes the broadcast instruction
}

#ifdef __clang__
#define FASTSKETCH_SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FASTSKETCH_SHUFFLE(T, a, b, ...) __builtin_shuffle(a, b, typename VecOf<T>::Int{__VA_ARGS__})
#endif

// Exchanges the lanes of `a` whose number has bit `d` for the lanes of `b` whose number has not.
template <typename T, int d, int... lane>
inline void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, lane...>) {
  constexpr int lanes = Lanes<T>::count;
  const Vec<T> first = FASTSKETCH_SHUFFLE(T, a, b, (lane & d ? lanes + lane - d : lane)...);
  b = FASTSKETCH_SHUFFLE(T, a, b, (lane & d ? lanes + lane : lane + d)...);
  a = first;
}

// Transposes a square of so many rows as a vector has lanes [L: Eklundh, IEEE Trans. Comput. 1972].
template <typename T, int d = Lanes<T>::count / 2>
inline void transpose(Vec<T>* rows) {
  constexpr int lanes = Lanes<T>::count;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i)
    if (!(i & d)) exchange<T, d>(rows[i], rows[i + d], std::make_integer_sequence<int, lanes>());
  if constexpr (d > 1) transpose<T, d / 2>(rows);
}

// Values at even and at odd places of `a` and `b`, one after the other; and back.
template <typename T, int... lane>
inline void take_apart(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, lane...>) {
  const Vec<T> even = FASTSKETCH_SHUFFLE(T, a, b, (2 * lane)...);
  b = FASTSKETCH_SHUFFLE(T, a, b, (2 * lane + 1)...);
  a = even;
}

template <typename T, int... lane>
inline void put_together(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, lane...>) {
  constexpr int lanes = Lanes<T>::count;
  const Vec<T> first = FASTSKETCH_SHUFFLE(T, a, b, (lane / 2 + lane % 2 * lanes)...);
  b = FASTSKETCH_SHUFFLE(T, a, b, (lanes / 2 + lane / 2 + lane % 2 * lanes)...);
  a = first;
}

template <typename T>
inline T sum_lanes(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < Lanes<T>::count; ++i) total += v[i];
  return total;
}

template <typename T, int d, int... lane>
inline Vec<T> swap_lanes(Vec<T> v, std::integer_sequence<int, lane...>) {
  return FASTSKETCH_SHUFFLE(T, v, v, (lane ^ d)...);
}

// The sum of the lanes in few steps, for sums of few values.
template <typename T, int d = Lanes<T>::count / 2>
inline T sum_by_halves(Vec<T> v) {
  v += swap_lanes<T, d>(v, std::make_integer_sequence<int, Lanes<T>::count>());
  if constexpr (d > 1)
    return sum_by_halves<T, d / 2>(v);
  else
    return v[0];
}

template <typename T>
inline T max_lanes(Vec<T> v) {
  T best = v[0];
  for (int i = 1; i < Lanes<T>::count; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// e^x to about one unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor's series for e^r.
// Results below the smallest normal number are 0; NaN stays NaN.
template <typename T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float low = -87.33654F, high = 88.37F;
  static constexpr float round = 12582912.F;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F;
  static constexpr int degree = 7, mantissa = 23, bias = 127, log_terms = 6;
  static constexpr int32_t half = 1 << 22;
};
template <>
struct ExpConstants<double> {
  static constexpr double low = -708.39, high = 709.4;
  static constexpr double round = 6755399441055744.;  // 1.5 * 2^52
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr int degree = 13, mantissa = 52, bias = 1023, log_terms = 13;
  static constexpr int64_t half = int64_t(1) << 51;
};

template <typename T>
inline Vec<T> exp(Vec<T> x) {
  using C = ExpConstants<T>;
  using Int = typename VecOf<T>::Int;
  constexpr T inverse_factorial[] = {T(1),          T(1),           T(1. / 2),        T(1. / 6),         T(1. / 24),
                                     T(1. / 120),   T(1. / 720),    T(1. / 5040),     T(1. / 40320),     T(1. / 362880),
                                     T(1. / 3628800), T(1. / 39916800), T(1. / 479001600), T(1. / 6227020800.)};
  const Int underflow = x < C::low;
  x = underflow ? broadcast<T>(C::low) : x;
  x = x > C::high ? broadcast<T>(C::high) : x;
  const Vec<T> rounded = x * T(1.4426950408889634) + C::round;
  Int exponent;
  __builtin_memcpy(&exponent, &rounded, sizeof(exponent));
  const Vec<T> n = rounded - C::round;
  const Vec<T> r = (x - n * C::ln2_high) - n * C::ln2_low;
  Vec<T> p = broadcast<T>(inverse_factorial[C::degree]);
  for (int i = C::degree - 1; i >= 0; --i) p = p * r + inverse_factorial[i];
  exponent = (exponent + C::bias) << C::mantissa;  // the shift drops the bits of `round`
  Vec<T> scale;
  __builtin_memcpy(&scale, &exponent, sizeof(scale));
  return underflow ? Vec<T>{} : p * scale;
}

// log x of a normal x > 0 to a few units in the last place; of 0 it is the least there is, not infinite. x = 2^e m with m in
// [3/4, 3/2), log m = 2 artanh((m - 1) / (m + 1)) as a series.
template <typename T>
inline Vec<T> log(Vec<T> x) {
  using C = ExpConstants<T>;
  using Int = typename VecOf<T>::Int;
  Int bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const Int exponent = ((bits + C::half) >> C::mantissa) - C::bias;
  bits -= exponent << C::mantissa;
  Vec<T> m;
  __builtin_memcpy(&m, &bits, sizeof(m));
  const Vec<T> s = (m - T(1)) / (m + T(1)), square = s * s;
  Vec<T> series = broadcast<T>(T(1) / T(2 * C::log_terms + 1));
  for (int i = C::log_terms - 1; i >= 0; --i) series = series * square + T(1) / T(2 * i + 1);
  const Vec<T> n = __builtin_convertvector(exponent, Vec<T>);
  return n * C::ln2_high + (n * C::ln2_low + T(2) * s * series);
}
