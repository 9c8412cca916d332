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
#include "max_pool.h"
#include "patch_nce.h"
#include "normalize.h"
#include "project.h"
#include "relation.h"
#include "transport.h"
#include "winograd_tiles.h"
#include "winograd.h"
#include "attend.h"
#include "direct.h"

#define FASTSKETCH_STRING(x) #x
#define FASTSKETCH_NAME(x) FASTSKETCH_STRING(x)

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {
    FASTSKETCH_NAME(LEVEL),
    patch_nce_forward<float>, patch_nce_forward<double>,
    patch_nce_backward<float>, patch_nce_backward<double>,
    attention_forward<float>, attention_forward<double>,
    attention_backward<float>, attention_backward<double>,
    project_forward<float>, project_forward<double>,
    project_backward<float>, project_backward<double>,
    convolve<float>, convolve<double>,
    convolve_input_gradient<float>, convolve_input_gradient<double>,
    convolve_kernel_gradient<float>, convolve_kernel_gradient<double>,
    normalize_layers<float>, normalize_layers<double>,
    normalize_layers_gradient<float>, normalize_layers_gradient<double>,
    transport_plan<float>, transport_plan<double>,
    transport_plan_gradient<float>, transport_plan_gradient<double>,
    relation_weight<float>, relation_weight<double>,
    semantic_relation<float>, semantic_relation<double>,
    weighted_nce<float>, weighted_nce<double>,
    attend_forward<float>, attend_forward<double>,
    attend_backward<float>, attend_backward<double>,
    feature_distance<float>, feature_distance<double>,
    feature_distance_gradient<float>, feature_distance_gradient<double>,
    blur, instance_norm, max_pool, gather, scatter,
};

}  // namespace fastsketch::LEVEL
