// relation_weight, semantic_relation and weighted_nce on CPU tensors: checks, outputs, and the kernel of the dtype.
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "ops.h"

namespace fastsketch {
namespace {

Rows rows_of(const Tensor& rows, const char* name) {
  STD_TORCH_CHECK(rows.dim() == 3 && rows.numel(), name, " must be [B, S, D] and not be empty");
  return {rows.size(0), rows.size(1), rows.size(2)};
}

void check_alike(const Tensor& key, const Tensor& query) {
  check_shape(key, "key", {query.size(0), query.size(1), query.size(2)});
  check_type(key, "key", query.scalar_type());
}

}  // namespace

Tensor relation_weight_cpu(Tensor key, double gamma) {
  const Rows p = rows_of(key, "key");
  STD_TORCH_CHECK(gamma > 0, "gamma must be positive");
  const Tensor weight = torch::stable::new_empty(key, {p.images, p.samples, p.samples});
  in_type(is_double(key, "key"), [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().relation_weight(p, contiguous_data<T>(key, "key"), gamma, weight.mutable_data_ptr<T>());
  });
  return weight;
}

std::tuple<Tensor, Tensor, Tensor> semantic_relation_cpu(Tensor query, Tensor key, double gamma) {
  const Rows p = rows_of(query, "query");
  check_alike(key, query);
  STD_TORCH_CHECK(gamma > 0, "gamma must be positive");
  const Tensor loss = torch::stable::new_empty(query, {p.images, p.samples});
  const Tensor weight = torch::stable::new_empty(query, {p.images, p.samples, p.samples});
  const Tensor room = torch::stable::empty_like(weight), gradient = torch::stable::empty_like(query);
  in_type(is_double(query, "query"), [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().semantic_relation(
        p, {contiguous_data<T>(query, "query"), contiguous_data<T>(key, "key"), gamma},
        {loss.mutable_data_ptr<T>(), gradient.mutable_data_ptr<T>(), weight.mutable_data_ptr<T>(),
         room.mutable_data_ptr<T>()});
  });
  return {loss, gradient, weight};
}

std::tuple<Tensor, Tensor> weighted_nce_cpu(
    Tensor query, Tensor key, std::optional<Tensor> weight, double temperature, bool decoupled) {
  const Rows p = rows_of(query, "query");
  check_alike(key, query);
  STD_TORCH_CHECK(temperature > 0, "temperature must be positive");
  if (weight) {
    check_shape(*weight, "weight", {p.images, p.samples, p.samples});
    check_type(*weight, "weight", query.scalar_type());
  }
  const Tensor loss = torch::stable::new_empty(query, {p.images, p.samples});
  const Tensor gradient = torch::stable::empty_like(query);
  in_type(is_double(query, "query"), [&](auto zero) {
    using T = decltype(zero);
    kernels().of<T>().weighted_nce(
        p, contiguous_data<T>(query, "query"), contiguous_data<T>(key, "key"),
        weight ? contiguous_data<T>(*weight, "weight") : nullptr, temperature, decoupled, loss.mutable_data_ptr<T>(),
        gradient.mutable_data_ptr<T>());
  });
  return {loss, gradient};
}

}  // namespace fastsketch
