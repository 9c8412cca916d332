// What the steps of a kernel need of the machine: who a thread is, barriers, warp votes, integer atomics. Here for nvcc;
// host/machine.h has the same for a CPU, so that tests run the kernels' own source without a GPU.
#pragma once

#ifndef __CUDACC__
#include "host/machine.h"
#else

#include <cstdint>

#define FASTSKETCH_DEVICE __device__ inline
#define FASTSKETCH_BOTH __host__ __device__ inline

namespace fastsketch::machine {

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

FASTSKETCH_DEVICE uint32_t thread() { return threadIdx.x; }
FASTSKETCH_DEVICE uint32_t threads() { return blockDim.x; }
FASTSKETCH_DEVICE uint32_t block() { return blockIdx.x; }
FASTSKETCH_DEVICE uint32_t lane() { return threadIdx.x % WARP; }

FASTSKETCH_DEVICE void sync() { __syncthreads(); }
FASTSKETCH_DEVICE bool sync_any(bool value) { return __syncthreads_or(value) != 0; }

// The next four are called by all lanes of a warp together.
FASTSKETCH_DEVICE uint32_t ballot(bool value) { return __ballot_sync(ALL_LANES, value); }
FASTSKETCH_DEVICE uint32_t lanes_like_mine(uint32_t value) { return __match_any_sync(ALL_LANES, value); }
template <typename T>
FASTSKETCH_DEVICE T from_lane(T value, uint32_t source) {
  return __shfl_sync(ALL_LANES, value, source);
}
// Sum over the lanes of `group`, which all pass the same group.
FASTSKETCH_DEVICE uint32_t group_sum(uint32_t group, uint32_t value) { return __reduce_add_sync(group, value); }

FASTSKETCH_DEVICE uint32_t count_bits(uint32_t bits) { return __popc(bits); }
FASTSKETCH_DEVICE uint32_t lowest_bit(uint32_t bits) { return __ffs(bits) - 1; }

FASTSKETCH_DEVICE uint32_t add(uint32_t* where, uint32_t value) { return atomicAdd(where, value); }
FASTSKETCH_DEVICE void add(uint64_t* where, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(where), static_cast<unsigned long long>(value));
}
FASTSKETCH_DEVICE void raise(uint32_t* where, uint32_t value) { atomicMax(where, value); }

FASTSKETCH_DEVICE uint64_t bits_of(double value) { return static_cast<uint64_t>(__double_as_longlong(value)); }
FASTSKETCH_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

}  // namespace fastsketch::machine

#endif
