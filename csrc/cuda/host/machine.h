// The interface of ../machine.h on a CPU, for tests: a block's threads are fibers, and barriers and warp votes switch
// between them in an order drawn anew each round, so that a missing barrier shows as a wrong result sooner or later. A
// barrier that not every thread reaches ends the program. Blocks run one after another.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define FASTSKETCH_DEVICE inline
#define FASTSKETCH_BOTH inline

namespace fastsketch::machine {


constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// Waits for all `members` that have not ended.
struct Barrier {
  uint32_t members = 0, arrived = 0, rounds = 0;
  void open() {
    if (arrived != members) return;
    arrived = 0;
    ++rounds;
  }
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool ended = false;
};

struct Warp {
  Barrier barrier;
  uint64_t value[WARP];
  uint32_t mask[WARP];
};

struct Grid {
  static constexpr size_t STACK = 64 * 1024;
  uint32_t threads = 0, thread = 0, block = 0;
  uint64_t progress = 0;
  std::function<void()> body;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  bool vote = false;
  ucontext_t scheduler;
  std::mt19937 random{1};
};

inline Grid grid;

inline uint32_t thread() { return grid.thread; }
inline uint32_t threads() { return grid.threads; }
inline uint32_t block() { return grid.block; }
inline uint32_t lane() { return grid.thread % WARP; }

inline void wait(Barrier& barrier) {
  const uint32_t round = barrier.rounds, self = grid.thread;
  ++barrier.arrived;
  ++grid.progress;
  barrier.open();
  while (barrier.rounds == round) {
    swapcontext(&grid.fibers[self].context, &grid.scheduler);
    grid.thread = self;
  }
}

inline void run_fiber() {
  grid.body();
  ++grid.progress;
  grid.fibers[grid.thread].ended = true;
  for (Barrier* barrier : {&grid.barrier, &grid.warps[grid.thread / WARP].barrier}) {
    --barrier->members;
    barrier->open();
  }
}

// Runs `body` in `blocks` blocks of `threads` threads.
inline void launch(uint32_t blocks, uint32_t threads, std::function<void()> body) {
  grid.body = std::move(body);
  grid.threads = threads;
  if (grid.fibers.size() < threads) grid.fibers.resize(threads);
  std::vector<uint32_t> order(threads);
  for (grid.block = 0; grid.block < blocks; ++grid.block) {
    grid.barrier = Barrier{threads};
    grid.warps.assign(threads / WARP, Warp{Barrier{WARP}, {}, {}});
    for (uint32_t t = 0; t < threads; ++t) {
      Fiber& fiber = grid.fibers[t];
      if (!fiber.stack) fiber.stack = std::make_unique<char[]>(Grid::STACK);
      fiber.ended = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = Grid::STACK;
      fiber.context.uc_link = &grid.scheduler;
      makecontext(&fiber.context, run_fiber, 0);
      order[t] = t;
    }
    for (uint32_t left = threads; left > 0;) {
      const uint64_t before = grid.progress;
      std::rotate(order.begin(), order.begin() + grid.random() % threads, order.end());
      if (grid.random() % 2) std::reverse(order.begin(), order.end());
      left = 0;
      for (uint32_t t : order) {
        if (grid.fibers[t].ended) continue;
        grid.thread = t;
        swapcontext(&grid.scheduler, &grid.fibers[t].context);
        left += !grid.fibers[t].ended;
      }
      if (left && grid.progress == before) {
        std::fprintf(stderr, "a barrier that not every thread reaches\n");
        std::abort();
      }
    }
  }
}

inline void sync() { wait(grid.barrier); }

inline bool sync_any(bool value) {
  sync();
  grid.vote = false;
  sync();
  grid.vote = grid.vote || value;
  sync();
  return grid.vote;
}

// Every lane's value, for all lanes of the warp together.
template <typename Function>
auto together(uint64_t value, uint32_t mask, const Function& function) {
  Warp& warp = grid.warps[grid.thread / WARP];
  warp.value[lane()] = value;
  warp.mask[lane()] = mask;
  wait(warp.barrier);
  const auto result = function(warp);
  wait(warp.barrier);
  return result;
}

inline uint32_t lanes_like_mine(uint32_t value) {
  return together(value, ALL_LANES, [&](const Warp& warp) {
    uint32_t lanes = 0;
    for (uint32_t n = 0; n < WARP; ++n) lanes |= uint32_t(warp.value[n] == value) << n;
    return lanes;
  });
}

inline uint32_t ballot(bool value) {
  return together(value, ALL_LANES, [](const Warp& warp) {
    uint32_t lanes = 0;
    for (uint32_t n = 0; n < WARP; ++n) lanes |= uint32_t(warp.value[n]) << n;
    return lanes;
  });
}

template <typename T>
T from_lane(T value, uint32_t source) {
  return together(value, ALL_LANES, [&](const Warp& warp) { return T(warp.value[source % WARP]); });
}

inline uint32_t group_sum(uint32_t group, uint32_t value) {
  return together(value, group, [&](const Warp& warp) {
    uint64_t sum = 0;
    for (uint32_t n = 0; n < WARP; ++n) {
      if (!(group >> n & 1)) continue;
      if (warp.mask[n] != group) std::abort();
      sum += warp.value[n];
    }
    if (sum >> 32) std::abort();
    return uint32_t(sum);
  });
}

inline uint32_t count_bits(uint32_t bits) { return uint32_t(__builtin_popcount(bits)); }
inline uint32_t lowest_bit(uint32_t bits) { return uint32_t(__builtin_ffs(int(bits))) - 1; }

inline uint32_t add(uint32_t* where, uint32_t value) {
  *where += value;
  return *where - value;
}
inline void add(uint64_t* where, uint64_t value) { *where += value; }
inline void raise(uint32_t* where, uint32_t value) { *where = std::max(*where, value); }

inline uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace fastsketch::machine
