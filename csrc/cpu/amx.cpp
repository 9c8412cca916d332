// The kernels that multiply bfloat16 in tiles, for x86-64 processors with AMX (and so AVX512-BF16); all others there are
// avx512.cpp's.
#include "level.h"

#ifdef FASTSKETCH_AMX
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2"))), \
    apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512bf16")
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#endif

#define VECTOR_BYTES 64

namespace fastsketch::amx {
namespace {

constexpr int ROW_BLOCK = 12;

#include "scratch.h"
#include "elements.h"
#include "vec.h"
#include "gemm.h"
#include "rows.h"
#include "tiles.h"
#include "attend_tiles.h"

}  // namespace

extern const TileKernels kernels;
const TileKernels kernels = {attend_rows_forward, attend_rows_backward};

}  // namespace fastsketch::amx

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
