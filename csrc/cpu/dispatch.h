// Which instruction sets there are, and which one runs. Free of torch: the kernels and the facts module both build it.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

namespace fastsketch {

inline std::vector<std::string> levels_compiled() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  return {"baseline", "avx2", "avx512"};
#else
  return {"baseline"};
#endif
}

inline bool level_detected(const std::string& level) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (level == "avx2")
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (level == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && level_detected("avx2");
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
