// The kernels for x86-64 processors with AVX-512 (F, BW, DQ, VL).
#include "level.h"

#ifdef FASTSKETCH_X86_LEVELS
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#endif

#define LEVEL avx512
#define VECTOR_BYTES 64
#define ROW_BLOCK_ROWS 12
#include "all.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
