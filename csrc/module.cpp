// fastsketch._facts: how the kernels were built and what this processor has. No tensors, and no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/dispatch.h"

#define FASTSKETCH_STRING(x) #x
#define FASTSKETCH_TEXT(x) FASTSKETCH_STRING(x)

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

std::vector<std::string> levels_detected() {
  std::vector<std::string> found;
  for (const std::string& level : fastsketch::levels_compiled())
    if (fastsketch::level_detected(level)) found.push_back(level);
  return found;
}

}  // namespace

PYBIND11_MODULE(_facts, m) {
  m.doc() = "How fastsketch's kernels were built, and what this processor has.";
  m.attr("compiler") = compiler();
  m.attr("flags") = FASTSKETCH_FLAGS;
  m.attr("built_for_torch") = FASTSKETCH_TORCH;
  m.attr("least_torch") = FASTSKETCH_LEAST_TORCH;
  m.attr("cuda_architectures") = words(FASTSKETCH_CUDA_ARCHITECTURES);
  m.def("levels_compiled", &fastsketch::levels_compiled, "Instruction sets the kernels are built for, lowest first.");
  m.def("levels_detected", &levels_detected, "Those of them that this processor has.");
  m.def("level_used", &fastsketch::level_used, "The one that runs: the best, or FASTSKETCH_CPU_LEVEL; '' if not there.");
}
