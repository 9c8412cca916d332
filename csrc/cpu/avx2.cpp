// The kernels for x86-64 processors with AVX2 and FMA (2013 and later).
#include "level.h"

#ifdef FASTSKETCH_X86_LEVELS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#define LEVEL avx2
#define VECTOR_BYTES 32
#define ROW_BLOCK_ROWS 6
#include "all.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
