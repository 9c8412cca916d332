// The kernel for a tensor's elements, by its dtype.
// Included once for each instruction set, inside its namespace.

// What values of E are computed in.
template <typename E>
using Compute = std::conditional_t<std::is_same_v<E, double>, double, float>;

// kernel(E()), E being the type of the elements.
template <typename Kernel>
inline void with_elements(Dtype dtype, const Kernel& kernel) {
  switch (dtype) {
    case Dtype::f32:
      return kernel(float());
    case Dtype::f64:
      return kernel(double());
    case Dtype::bf16:
      return kernel(BFloat16());
    case Dtype::f16:
      return kernel(Half());
  }
}
