// Which instruction sets there are, and which one runs. Free of torch: the kernels and the facts module both build it.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FASTSKETCH_X86_LEVELS 1
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define FASTSKETCH_AMX 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastsketch {

inline std::vector<std::string> levels_compiled() {
  return {
      "baseline",
#ifdef FASTSKETCH_X86_LEVELS
      "avx2", "avx512",
#endif
#ifdef FASTSKETCH_AMX
      "amx",
#endif
  };
}

#ifdef FASTSKETCH_AMX
// Whether there are tiles and products of bfloat16, and the system lets this process use them, which has to be asked.
inline bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned bfloat16 = 1U << 22, tiles = 1U << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (bfloat16 | tiles)) != (bfloat16 | tiles)) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

inline bool level_detected(const std::string& level) {
#ifdef FASTSKETCH_X86_LEVELS
  if (level == "avx2")
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (level == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && level_detected("avx2");
#endif
#ifdef FASTSKETCH_AMX
  if (level == "amx") return level_detected("avx512") && __builtin_cpu_supports("avx512bf16") && has_amx();
#endif
  return level == "baseline";
}

// The best level that is compiled in and that the processor has, or FASTSKETCH_CPU_LEVEL. Empty if that one is not.
inline std::string level_used() {
  const char* forced = std::getenv("FASTSKETCH_CPU_LEVEL");
  std::string best;
  for (const std::string& level : levels_compiled())
    if (level_detected(level) && (!forced || !*forced || level == forced)) best = level;
  return best;
}

}  // namespace fastsketch
