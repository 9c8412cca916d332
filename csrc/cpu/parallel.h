// The framework's thread pool, through the stable C interface: torch.set_num_threads is honoured.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace fastsketch {

// Numbers below the smallest normal one (1e-38 in float32) are 0, read or made, on this thread until the end of the
// scope: many an Intel processor takes a hundred cycles for each, and tiny weights times small gradients make millions.
// No thread may be started in it: threads begin with the state of the one that starts them, and would keep it.
class NoSubnormals {
 public:
#ifdef __SSE__
  NoSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~NoSubnormals() { _mm_setcsr(before_); }
#else
  NoSubnormals() {}
#endif
  NoSubnormals(const NoSubnormals&) = delete;
  NoSubnormals& operator=(const NoSubnormals&) = delete;

#ifdef __SSE__
 private:
  unsigned before_;
#endif
};

inline int64_t num_threads() {
  uint32_t count = 1;
  if (torch_get_num_threads(&count) != 0) throw std::runtime_error("torch_get_num_threads failed");
  return count;
}

// body(begin, end) over parts of [begin, end); parts of at least `grain`, one a thread. Without subnormal numbers.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (end <= begin) return;
  const auto call = [](int64_t from, int64_t to, void* context) {
    const NoSubnormals on_this_thread;
    (*static_cast<const Body*>(context))(from, to);
  };
  void* context = const_cast<void*>(static_cast<const void*>(&body));
  if (torch_parallel_for(begin, end, std::max<int64_t>(grain, 1), call, context) != 0)
    throw std::runtime_error("fastsketch: a kernel failed in a worker thread (out of memory?)");
}

// body(turn) on each thread, where turn() gives the next number from 0 on that no thread has had.
template <typename Body>
void for_each_turn(int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(0, std::min(num_threads(), count), 1, [&](int64_t, int64_t) { body([&next] { return next++; }); });
}

// body(item) for every item below `count`, each taken by the next thread that is free: for items of unequal cost whose
// results do not depend on who computes them. One thread where they are not `worth_threads`.
template <typename Body>
void for_each_item(int64_t count, bool worth_threads, const Body& body) {
  if (!worth_threads) {
    const NoSubnormals on_this_thread;
    for (int64_t item = 0; item < count; ++item) body(item);
    return;
  }
  for_each_turn(count, [&](const auto& turn) {
    for (int64_t item = turn(); item < count; item = turn()) body(item);
  });
}

}  // namespace fastsketch
