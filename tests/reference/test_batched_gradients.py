"""Gradients of many outputs at once, by which torch.autograd makes Jacobians: its older vmap, seen by few."""

import pytest
import torch
from torch import Tensor

import fastsketch
from fastsketch.compat import hneg_src
from fastsketch.ops.relation import WeightedNCE
from fastsketch.ops.transport import TransportPlan

KERNELS = ("patch_nce_forward",)
INDEX = torch.tensor([[0, 3, 5]])
SIZES = (6, 2), (6,), (4, 6), (4,)

CASES = {
    "patch_nce": lambda x, y: fastsketch.patch_nce(x, y, reduction="none"),
    "patch_nce of keys": lambda x, y: fastsketch.patch_nce(y, x, reduction="none"),
    "gather": lambda x, y: fastsketch.gather_patches(x[:, :, None], INDEX % 2),
    "tap": lambda x, y: torch.cat([z.flatten() for z in fastsketch.tap_patches(x[:, :, None], INDEX % 2)]),
    "projection": lambda x, y: fastsketch.project_patches([x], weights()),
    "projection and norm": lambda x, y: fastsketch.project_and_normalize([x], weights())[0],
    "attention": lambda x, y: torch.cat(fastsketch.attention_statistics(x, y), 1),
    "plan": lambda x, y: TransportPlan.apply(x @ y.mT, 0.5),
    "weighted loss": lambda x, y: WeightedNCE.apply(x, y, None, 0.5, False),
    "relation": lambda x, y: hneg_src.SRC_Loss(OPTIONS)(x[0], y[0])[0],
}
OPTIONS = type("Options", (), {"HDCE_gamma": 1.0, "use_curriculum": False, "batch_size": 1})


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in SIZES]


@pytest.mark.parametrize("name", CASES)
def test_jacobian_in_one_go_is_that_row_by_row(backend, randn, name):
    x, y = randn(1, 4, 2), randn(1, 4, 2, seed=1)
    at_once, by_row = (
        torch.autograd.functional.jacobian(lambda x: CASES[name](x, y), x, vectorize=vectorize)
        for vectorize in (True, False)
    )
    assert by_row.abs().max() > 0
    torch.testing.assert_close(at_once, by_row, rtol=1e-9, atol=1e-12)
