// Two-layer projections of patches, y = relu(x W1ᵀ + b1) W2ᵀ + b2, of several layers in one call: docs/method.md
// section 1 [L: CUT's netF]. Included once for each instruction set.
//
// Threads share out rows of patches (or, for the gradients of weights, rows of the weights) by their cost, over all layers
// at once. A sum is taken in order by one thread, so results do not depend on the number of threads.

// Patches at a time; their hidden values stay in the second-level cache.
constexpr int64_t FORWARD_ROWS = 288, BACKWARD_ROWS = 96;

// Rows of a block when `rows` are cut into as few blocks of about the same size as may be, `most` at most.
inline int64_t even_block(int64_t rows, int64_t most) {
  const int64_t blocks = (rows + most - 1) / most;
  return std::min(most, round_up((rows + blocks - 1) / blocks, ROW_BLOCK));
}

// Items 0, 1, ... have `rows` rows of a certain cost each; calls body(item, first row, last row) so that each thread gets
// neighbouring rows of about the same cost in all, whole blocks of ROW_BLOCK.
struct CostedRows {
  int64_t rows, cost;
};

template <typename Body>
void for_each_share(const std::vector<CostedRows>& items, const Body& body) {
  double total = 0;
  for (const CostedRows& item : items) total += double(item.rows) * double(item.cost);
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(num_threads(), int64_t(total / 1e6)));
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const double from = total * double(begin) / double(parts), to = total * double(end) / double(parts);
    double before = 0;
    for (size_t n = 0; n < items.size(); ++n) {
      const auto row_at = [&](double work) {  // the first row of this item at or behind so much work
        const double row = (work - before) / double(std::max<int64_t>(items[n].cost, 1));
        if (row >= double(items[n].rows)) return items[n].rows;
        return row <= 0 ? int64_t(0) : int64_t(row) / ROW_BLOCK * ROW_BLOCK;
      };
      const int64_t first = row_at(from), last = end == parts ? items[n].rows : row_at(to);
      if (first < last) body(int64_t(n), first, last);
      before += double(items[n].rows) * double(items[n].cost);
    }
  });
}

template <typename T>
inline void add_bias(T* row, const T* bias, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] += bias[i];
}

template <typename T>
inline void add_bias_relu(T* row, const T* bias, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T value = row[i] + bias[i];
    row[i] = value <= T(0) ? T(0) : value;  // NaN stays NaN, as in the framework's relu
  }
}

template <typename T>
void project_forward(const Projection<T>& p) {
  std::vector<CostedRows> items;
  for (const ProjectionLayer<T>& layer : p.layers) items.push_back({p.rows, (layer.width + p.out) * p.hidden});
  for_each_share(items, [&](int64_t n, int64_t first, int64_t last) {
    const ProjectionLayer<T>& layer = p.layers[size_t(n)];
    Scratch<T> panel(DEPTH_BLOCK * panel_width<T>());
    Scratch<T> block(p.hidden_values ? 0 : FORWARD_ROWS * p.hidden);
    const int64_t most = even_block(last - first, FORWARD_ROWS);
    for (int64_t row = first; row < last; row += most) {
      const int64_t rows = std::min(most, last - row), at = n * p.rows + row;
      T* hidden = p.hidden_values ? p.hidden_values + at * p.hidden : block;
      T* out = p.output + at * p.out;
      multiply_transposed<T>(
          layer.patches + row * layer.width, layer.width, rows, layer.weight1, layer.width, layer.width, p.hidden,
          hidden, p.hidden, panel);
      for (int64_t r = 0; r < rows; ++r) add_bias_relu(hidden + r * p.hidden, layer.bias1, p.hidden);
      multiply_transposed<T>(
          hidden, p.hidden, rows, layer.weight2, p.hidden, p.hidden, p.out, out, p.out, panel);
      for (int64_t r = 0; r < rows; ++r) add_bias(out + r * p.out, layer.bias2, p.out);
    }
  });
}

// Gradient of a weight [columns of `left`, columns of `right`] = leftᵀ · right, and of its bias, the sums of `left`.
template <typename T>
struct WeightGradient {
  const T* left;
  const T* right;
  int64_t left_width, right_width;
  T* weight;
  T* bias;
};

// Rows [first, last) of one of them.
template <typename T>
void weight_gradient(const WeightGradient<T>& g, int64_t depth, int64_t first, int64_t last) {
  const int64_t rows = last - first;
  if (depth == 0) std::fill_n(g.weight + first * g.right_width, rows * g.right_width, T(0));
  multiply_columns<T>(
      g.left + first, g.left_width, g.right, g.right_width, depth, rows, g.right_width,
      g.weight + first * g.right_width, g.right_width, false, PackedSides<T>(rows, g.right_width));
  std::fill_n(g.bias + first, rows, T(0));
  for (int64_t k = 0; k < depth; ++k) add_bias(g.bias + first, g.left + k * g.left_width + first, rows);
}

template <typename T>
void project_backward(const Projection<T>& p, const ProjectionGradients<T>& grads) {
  Scratch<T> grad_hidden(int64_t(p.layers.size()) * p.rows * p.hidden);
  std::vector<CostedRows> items;
  for (size_t n = 0; n < p.layers.size(); ++n)
    items.push_back({p.rows, (p.out + (grads.patches[n] ? p.layers[n].width : 0)) * p.hidden});
  for_each_share(items, [&](int64_t n, int64_t first, int64_t last) {
    const ProjectionLayer<T>& layer = p.layers[size_t(n)];
    T* grad_patches = grads.patches[size_t(n)];
    Scratch<T> second_weight(p.out * round_up(p.hidden, panel_width<T>()));
    Scratch<T> first_weight(grad_patches ? p.hidden * round_up(layer.width, panel_width<T>()) : 0);
    pack<T>(layer.weight2, p.out, p.hidden, p.hidden, second_weight);
    if (grad_patches) pack<T>(layer.weight1, p.hidden, layer.width, layer.width, first_weight);
    for (int64_t row = first; row < last; row += BACKWARD_ROWS) {
      const int64_t rows = std::min(BACKWARD_ROWS, last - row), at = n * p.rows + row;
      T* to = grad_hidden + at * p.hidden;
      const T* hidden = p.hidden_values + at * p.hidden;
      multiply<T>(grads.output + at * p.out, p.out, 1, rows, second_weight, p.out, p.hidden, to, p.hidden, false);
      for (int64_t i = 0; i < rows * p.hidden; ++i) to[i] = hidden[i] <= T(0) ? T(0) : to[i];
      if (grad_patches)
        multiply<T>(
            to, p.hidden, 1, rows, first_weight, p.hidden, layer.width, grad_patches + row * layer.width, layer.width,
            false);
    }
  });
  if (grads.weights.empty()) return;

  std::vector<WeightGradient<T>> weights;
  items.clear();
  for (size_t n = 0; n < p.layers.size(); ++n) {
    const int64_t at = int64_t(n) * p.rows, width = p.layers[n].width;
    T* const* to = &grads.weights[4 * n];
    weights.push_back({grad_hidden + at * p.hidden, p.layers[n].patches, p.hidden, width, to[0], to[1]});
    weights.push_back({grads.output + at * p.out, p.hidden_values + at * p.hidden, p.out, p.hidden, to[2], to[3]});
    items.push_back({p.hidden, p.rows * round_up(width, panel_width<T>())});
    items.push_back({p.out, p.rows * p.hidden});
  }
  for_each_share(items, [&](int64_t n, int64_t first, int64_t last) {
    weight_gradient<T>(weights[size_t(n)], p.rows, first, last);
  });
}
