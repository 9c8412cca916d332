// Rows divided by (their L2 norm + eps), and the gradient back through it [L: CUT's Normalize]. Rows of several layers stand
// one layer after the other. Included once for each instruction set, after patch_nce.h, whose norms these are.

template <typename T>
void normalize_layers(const T* x, int64_t rows, int64_t width, const std::vector<T*>& layers) {
  const int64_t least = 100'000 / std::max<int64_t>(width, 1) + 1;
  parallel_for(0, rows * int64_t(layers.size()), least, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      T* to = layers[size_t(at / rows)] + at % rows * width;
      const T scale = inverse_norm(x + at * width, width);
      for (int64_t i = 0; i < width; ++i) to[i] = x[at * width + i] * scale;
    }
  });
}

template <typename T>
void normalize_layers_gradient(
    const std::vector<const T*>& grads, const T* x, int64_t rows, int64_t width, T* grad_x) {
  const int64_t least = 100'000 / std::max<int64_t>(width, 1) + 1;
  parallel_for(0, rows * int64_t(grads.size()), least, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      std::copy_n(grads[size_t(at / rows)] + at % rows * width, width, grad_x + at * width);
      through_norm<T>(grad_x + at * width, x + at * width, inverse_norm(x + at * width, width), width);
    }
  });
}
