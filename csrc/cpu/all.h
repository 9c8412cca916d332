// Every kernel, for one instruction set. The includer has chosen it and defined
// LEVEL (a namespace), VECTOR_BYTES and ROW_BLOCK_ROWS (rows of C that a product keeps in registers).

namespace fastsketch::LEVEL {
namespace {

constexpr int ROW_BLOCK = ROW_BLOCK_ROWS;

#include "scratch.h"
#include "elements.h"
#include "vec.h"
#include "gemm.h"
#include "rows.h"

#include "attention.h"
#include "blur.h"
#include "feature_distance.h"
#include "gather.h"
#include "instance_norm.h"
#include "instance_norm_last.h"
#include "max_pool.h"
#include "patch_nce.h"
#include "normalize.h"
#include "projection.h"
#include "relation.h"
#include "transport.h"
#include "winograd_tiles.h"
#include "winograd.h"
#include "attend.h"
#include "direct.h"

#define FASTSKETCH_STRING(x) #x
#define FASTSKETCH_NAME(x) FASTSKETCH_STRING(x)

template <typename T>
constexpr Typed<T> typed = {
    patch_nce_forward<T>, patch_nce_backward<T>,
    attention_forward<T>, attention_backward<T>,
    project_forward<T>, project_backward<T>,
    convolve<T>, convolve_input_gradient<T>, convolve_kernel_gradient<T>,
    normalize_layers<T>, normalize_layers_gradient<T>,
    transport_plan<T>, transport_plan_gradient<T>,
    relation_weight<T>, semantic_relation<T>, weighted_nce<T>,
    attend_forward<T>, attend_backward<T>,
};

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {
    FASTSKETCH_NAME(LEVEL),
    typed<float>, typed<double>,
    blur, feature_distance, instance_norm, max_pool, gather, scatter,
};

}  // namespace fastsketch::LEVEL
