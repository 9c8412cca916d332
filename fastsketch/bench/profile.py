"""Where a step's time goes: operators' own time by kind, from torch.profiler."""

from collections import Counter

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fastsketch.bench.case import Case

OPERATORS = "fastsketch's operators"
NORMALISATION, RESAMPLING = "normalisation", "padding and resampling"
TRITON_KERNELS = {
    **dict.fromkeys(("forward_kernel", "backward_kernel", "inverse_norms_kernel"), OPERATORS),
    **dict.fromkeys(("gather_kernel", "add_kernel", "place_kernel", "rows_kernel", "columns_kernel"), OPERATORS),
    **dict.fromkeys(("distance_kernel", "distance_gradient_kernel"), OPERATORS),
    **dict.fromkeys(("moments_kernel", "normalise_kernel", "products_kernel", "gradient_kernel"), NORMALISATION),
    "stencil_kernel": RESAMPLING,
}
"""Kinds by whole names, as a profiler shows them; CUDA C++ kernels carry the namespace."""

KINDS: dict[str, tuple[str, ...]] = {
    OPERATORS: ("fastsketch",),
    "convolution": ("conv", "mkldnn", "cudnn", "xnn", "slow_", "thnn", "im2col"),
    NORMALISATION: ("norm", "batch_norm"),
    RESAMPLING: ("pad", "upsample", "replication", "reflection"),
    "matrix products": ("mm", "addmm", "bmm", "matmul", "linear", "gemm"),
    "attention": ("attention", "flash", "softmax"),
    "optimiser": ("_foreach", "_fused", "optimizer", "lerp", "addcmul", "addcdiv"),
    "gather and scatter": ("index", "gather", "scatter", "take"),
    "activations": ("relu", "tanh", "threshold", "leaky", "sigmoid"),
    "copies and fills": ("copy", "fill", "zero", "clone", "cat", "contiguous", "to_copy"),
}
"""Kinds of operators by parts of their names; the first that fits counts."""


def kind_of(name: str) -> str:
    """The kind of an operator or GPU kernel."""
    if name in TRITON_KERNELS:
        return TRITON_KERNELS[name]
    plain = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in plain for part in parts)), "everything else")


def breakdown(case: Case, contender: str, device: str = "cpu") -> Counter[str]:
    """Milliseconds of one call by kind of operator, after one call to warm up; on a GPU, of its kernels."""
    chosen, inputs = case.contenders[contender], case.make()
    chosen.run(inputs, chosen.prepare(inputs))
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    prepared = chosen.prepare(inputs)
    with profile(activities=activities) as seen:
        chosen.run(inputs, prepared)
        if device == "cuda":
            torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        if device != "cuda":
            spent[kind_of(event.key)] += event.self_cpu_time_total / 1e3
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            # Operators on the CPU, and spans such as the optimiser's, carry their kernels' time once more.
            spent[kind_of(event.key)] += event.self_device_time_total / 1e3
    return spent


def table(columns: dict[str, Counter[str]]) -> str:
    """Kinds of operators by rows, contenders by columns, milliseconds and shares."""
    kinds = sorted({k for c in columns.values() for k in c}, key=lambda k: -max(c[k] for c in columns.values()))
    lines = [f"  {'ms by kind of operator':28}" + "".join(f"{name:>22}" for name in columns)]
    for kind in kinds:
        cells = "".join(f"{c[kind]:15.1f} {c[kind] / max(c.total(), 1e-9):6.1%}" for c in columns.values())
        lines.append(f"  {kind:28}{cells}")
    return "\n".join([*lines, f"  {'all':28}" + "".join(f"{c.total():15.1f}{'':7}" for c in columns.values())])
