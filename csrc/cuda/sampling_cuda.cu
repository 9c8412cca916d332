// sample_patches on CUDA tensors: the second library, fastsketch/_C_cuda.so. Its schema is _C.so's (../registration.cpp),
// which is loaded first; nothing of the first library needs this one. Launches only: no synchronisation, no shape that
// depends on data, memory through the framework, so a CUDA graph can hold it.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "../check.h"
#include "sampling_all.h"
#include "sampling_mass.h"
#include "sampling_quota.h"
#include "sampling_select.h"

namespace fastsketch {
namespace {

using namespace sampling;

constexpr int64_t WORKSPACE = int64_t{1} << 28;  // bytes; more images than fit are done in turn

__global__ void __launch_bounds__(PASS_THREADS) density_sums_kernel(const __grid_constant__ Problem p) {
  __shared__ double scratch[PASS_THREADS];
  density_sums(p, scratch);
}

__global__ void __launch_bounds__(PASS_THREADS) region_masses_kernel(const __grid_constant__ Problem p) {
  __shared__ MassShared shared;
  region_masses(p, shared);
}

__global__ void __launch_bounds__(IMAGE_THREADS, 1) set_quotas_kernel(const __grid_constant__ Problem p) {
  __shared__ QuotaShared shared;
  set_quotas(p, shared);
}

__global__ void __launch_bounds__(PASS_THREADS) collect_kernel(const __grid_constant__ Problem p) {
  __shared__ double scratch[PASS_THREADS];
  collect(p, scratch);
}

__global__ void __launch_bounds__(IMAGE_THREADS, 1) select_kernel(const __grid_constant__ Problem p) {
  extern __shared__ uint64_t select_memory[];
  select(p, *reinterpret_cast<SelectShared*>(select_memory));
}

__global__ void __launch_bounds__(PASS_THREADS) write_keys_kernel(const __grid_constant__ Problem p, double* keys) {
  __shared__ double scratch[PASS_THREADS];
  write_keys(p, keys, scratch);
}

__global__ void __launch_bounds__(PASS_THREADS)
    write_regions_kernel(const __grid_constant__ Problem p, const int64_t* by_key, int16_t* regions) {
  write_regions(p, by_key, regions);
}

__global__ void __launch_bounds__(PASS_THREADS) write_first_kernel(
    const __grid_constant__ Problem p, const int64_t* by_key, const int16_t* regions, const int64_t* by_region) {
  write_first(p, by_key, regions, by_region);
}

void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "sample_patches: ", cudaGetErrorString(error)); }

Type number_type(const Tensor& tensor, const char* name) {
  switch (floating_dtype(tensor, name)) {
    case Dtype::f32:
      return Type::f32;
    case Dtype::f64:
      return Type::f64;
    case Dtype::bf16:
      return Type::bf16;
    default:
      return Type::f16;
  }
}

Type integer_type(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Long:
      return Type::i64;
    case ScalarType::Int:
      return Type::i32;
    case ScalarType::Short:
      return Type::i16;
    case ScalarType::Byte:
      return Type::u8;
    default:
      STD_TORCH_CHECK(
          false, name, " must be int64, int32, int16 or uint8, got ",
          torch::headeronly::toString(tensor.scalar_type()));
  }
}

Input input(const Tensor& tensor, const char* name, const Tensor& like, Type type) {
  check_shape(tensor, name, {like.size(0), like.size(1)});
  STD_TORCH_CHECK(
      tensor.is_cuda() && tensor.get_device() == like.get_device(), name, " must be on density's CUDA device");
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), type};
}

// The first of several arrays in a piece of memory, which then begins after it.
template <typename T>
T* carve(uintptr_t& memory, int64_t count) {
  T* const array = reinterpret_cast<T*>(memory);
  memory += uintptr_t(count * int64_t(sizeof(T)) + 255) / 256 * 256;
  return array;
}

// Lays the workspace out from `memory` on; returns its end.
uintptr_t lay_out(Problem& p, uintptr_t memory, bool with_candidates) {
  const int64_t images = p.images, all = with_candidates ? images * p.positions : 0;
  p.partial = carve<double>(memory, images * p.chunks);
  p.table = carve<Region>(memory, images * p.width);
  p.image = carve<Image>(memory, images);
  p.key = carve<uint64_t>(memory, all);
  p.place = carve<uint32_t>(memory, all);
  return memory;
}

std::pair<Tensor, Tensor> stable_sort(const Tensor& values) {  // rows; values and positions
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(values), from(std::optional<bool>(true)), from(int64_t{-1}), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

void launch(const Problem& p, const Tensor& density, cudaStream_t stream) {
  const unsigned blocks = p.images * p.chunks;
  density_sums_kernel<<<blocks, PASS_THREADS, 0, stream>>>(p);
  region_masses_kernel<<<blocks, PASS_THREADS, 0, stream>>>(p);
  set_quotas_kernel<<<p.images, IMAGE_THREADS, 0, stream>>>(p);
  if (p.samples <= CAPACITY) {
    collect_kernel<<<blocks, PASS_THREADS, 0, stream>>>(p);
    select_kernel<<<p.images, IMAGE_THREADS, sizeof(SelectShared), stream>>>(p);
    return check(cudaGetLastError());
  }
  const std::array<int64_t, 2> shape{p.images, p.positions};
  const Tensor keys = torch::stable::new_empty(density, shape, ScalarType::Double);
  const Tensor regions = torch::stable::new_empty(density, shape, ScalarType::Short);
  write_keys_kernel<<<blocks, PASS_THREADS, 0, stream>>>(p, keys.mutable_data_ptr<double>());
  check(cudaGetLastError());
  const Tensor by_key = stable_sort(keys).second;
  write_regions_kernel<<<blocks, PASS_THREADS, 0, stream>>>(
      p, by_key.const_data_ptr<int64_t>(), regions.mutable_data_ptr<int16_t>());
  check(cudaGetLastError());
  const auto [sorted, by_region] = stable_sort(regions);
  write_first_kernel<<<blocks, PASS_THREADS, 0, stream>>>(
      p, by_key.const_data_ptr<int64_t>(), sorted.const_data_ptr<int16_t>(), by_region.const_data_ptr<int64_t>());
  check(cudaGetLastError());
}

Tensor sample_patches_cuda(
    Tensor density, std::optional<Tensor> region, Tensor uniform, int64_t num_patches, double threshold, double boost) {
  STD_TORCH_CHECK(density.dim() == 2, "density must have 2 dimensions, got ", density.dim());
  const int64_t images = density.size(0), positions = density.size(1);
  STD_TORCH_CHECK(
      positions >= 1 && positions <= MAX_POSITIONS, "density must have 1 to ", MAX_POSITIONS,
      " positions an image, got ", positions);
  STD_TORCH_CHECK(
      num_patches >= 1 && num_patches <= positions, "num_patches must be 1 to ", positions, ", got ", num_patches);
  Problem whole{};
  whole.density = input(density, "density", density, number_type(density, "density"));
  whole.uniform = input(uniform, "uniform", density, number_type(uniform, "uniform"));
  if (region) whole.region = input(*region, "region", density, integer_type(*region, "region"));
  whole.positions = uint32_t(positions);
  whole.samples = uint32_t(num_patches);
  whole.chunks = (whole.positions + CHUNK - 1) / CHUNK;
  whole.width = region ? MAX_REGIONS : 1;
  whole.threshold = threshold;
  whole.boost = boost;
  whole.unit = unit_for(whole.positions, boost);

  const torch::stable::accelerator::DeviceGuard guard(density.get_device());
  const Tensor index = torch::stable::new_empty(density, std::array<int64_t, 2>{images, num_patches}, ScalarType::Long);
  if (images == 0) return index;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(density.get_device(), &stream));
  check(cudaFuncSetAttribute(select_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(SelectShared))));

  const bool with_candidates = num_patches <= CAPACITY;
  whole.images = 1;
  const int64_t bytes = int64_t(lay_out(whole, 0, with_candidates)), sorting = with_candidates ? 0 : 32 * positions;
  const int64_t together = std::min(images, std::max(WORKSPACE / (bytes + sorting), int64_t{1}));
  const Tensor workspace =
      torch::stable::new_empty(density, std::array<int64_t, 1>{together * bytes}, ScalarType::Byte);
  for (int64_t first = 0; first < images; first += together) {
    Problem p = whole;
    p.images = uint32_t(std::min(together, images - first));
    p.first_image = uint32_t(first);
    lay_out(p, reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr()), with_candidates);
    p.index = index.mutable_data_ptr<int64_t>() + first * num_patches;
    launch(p, density, static_cast<cudaStream_t>(stream));
  }
  return index;
}

}  // namespace
}  // namespace fastsketch

STABLE_TORCH_LIBRARY_IMPL(fastsketch_C, CUDA, m) {
  m.impl("sample_patches", TORCH_BOX(&fastsketch::sample_patches_cuda));
}
