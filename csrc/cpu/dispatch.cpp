#include "dispatch.h"

#include <stdexcept>

#include "kernels.h"

namespace fastsketch {

static const Kernels& choose() {
  const std::string level = level_used();
  if (level == "baseline") return baseline::kernels;
#ifdef FASTSKETCH_X86_LEVELS
  if (level == "avx2") return avx2::kernels;
  if (level == "avx512") return avx512::kernels;
#endif
  throw std::runtime_error(
      "FASTSKETCH_CPU_LEVEL must be baseline, avx2 or avx512, and one that this processor has");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastsketch
