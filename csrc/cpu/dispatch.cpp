#include "dispatch.h"

#include <stdexcept>

#include "kernels.h"

namespace fastsketch {

static const Kernels& choose() {
  const std::string level = level_used();
  if (level == "baseline") return baseline::kernels;
#ifdef FASTSKETCH_X86_LEVELS
  if (level == "avx2") return avx2::kernels;
  if (level == "avx512" || level == "amx") return avx512::kernels;
#endif
  throw std::runtime_error(
      "FASTSKETCH_CPU_LEVEL must be baseline, avx2, avx512 or amx, and one that this processor has");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

static TileKernels choose_tiles() {
#ifdef FASTSKETCH_AMX
  if (level_used() == "amx") return amx::kernels;
#endif
  return {};
}

const TileKernels& tile_kernels() {
  static const TileKernels chosen = choose_tiles();
  return chosen;
}

}  // namespace fastsketch
