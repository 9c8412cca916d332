// Memory for intermediate values. Included once for each instruction set, inside its namespace.

// Uninitialised memory on a cache line, given back at the end of the scope.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(::operator new(sizeof(T) * size_t(std::max<int64_t>(count, 1)), std::align_val_t(64)))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete(data_, std::align_val_t(64)); }
  operator T*() const { return data_; }

 private:
  T* data_;
};
