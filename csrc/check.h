// Checks of what reaches a kernel. Users get their errors from fastsketch.functional; these are for callers of
// torch.ops.fastsketch_C, and keep a wrong shape from becoming a wrong address.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <string>

#include "cpu/kernels.h"

namespace fastsketch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  bool right = tensor.dim() == int64_t(shape.size());
  int64_t d = 0;
  for (int64_t size : shape) right = right && tensor.size(d++) == size;
  if (right) return;
  std::string want, got;
  for (int64_t size : shape) want += (want.empty() ? "" : ", ") + std::to_string(size);
  for (int64_t i = 0; i < tensor.dim(); ++i) got += (i ? ", " : "") + std::to_string(tensor.size(i));
  STD_TORCH_CHECK(false, name, " must have shape [", want, "], got [", got, "]");
}

inline void check_type(const Tensor& tensor, const char* name, ScalarType type) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == type, name, " must be ", torch::headeronly::toString(type), ", got ",
      torch::headeronly::toString(tensor.scalar_type()));
}

inline Dtype floating_dtype(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      STD_TORCH_CHECK(
          false, name, " must be float32, float64, bfloat16 or float16, got ",
          torch::headeronly::toString(tensor.scalar_type()));
  }
}

// Whether it is float64; else it must be float32.
inline bool is_double(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::Double, name, " must be float32 or float64, got ",
      torch::headeronly::toString(type));
  return type == ScalarType::Double;
}

// call(double()) or call(float()).
template <typename Call>
void in_type(bool in_double, const Call& call) {
  in_double ? call(double()) : call(float());
}

inline ScalarType accumulation_type(Dtype dtype) { return dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float; }

inline View view3(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 3, name, " must have 3 dimensions, got ", tensor.dim());
  View view{tensor.const_data_ptr(), floating_dtype(tensor, name), {}};
  for (int d = 0; d < 3; ++d) view.stride[d] = tensor.stride(d);
  return view;
}

// Of a map [B, C, H, W]: whether the channels of a position lie side by side.
inline bool has_channels_last(const Tensor& map) {
  int64_t stride = 1;
  for (int d : {1, 3, 2, 0}) {
    if (map.size(d) != 1 && map.stride(d) != stride) return false;
    stride *= map.size(d);
  }
  return true;
}

// Whether a map is channels-last; else it must be contiguous. What is both is contiguous.
inline bool is_channels_last(const Tensor& map, const char* name) {
  if (map.is_contiguous()) return false;
  STD_TORCH_CHECK(has_channels_last(map), name, " must be contiguous or channels-last");
  return true;
}

template <typename T>
const T* contiguous_data(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  return tensor.const_data_ptr<T>();
}

}  // namespace fastsketch
