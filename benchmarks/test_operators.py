"""The CPU suite: `pytest benchmarks`. Groups are cases; results are compared before anything is timed.

pytest-benchmark times one contender after the other; for figures to quote, `python -m benchmarks.run` lets them take
turns. FASTSKETCH_BENCH_ROUNDS (default 20) calls each.
"""

import itertools
import os

import pytest
import torch

from fastsketch.bench.case import Case
from fastsketch.bench.cases import CASES
from fastsketch.bench.timing import copies_needed

ROUNDS = int(os.environ.get("FASTSKETCH_BENCH_ROUNDS", "20"))


@pytest.fixture(scope="module", params=list(CASES))
def built(request: pytest.FixtureRequest) -> tuple[str, Case, list]:
    """A case whose contenders were found to agree, and enough inputs for no cache to hold them."""
    torch.manual_seed(0)
    torch.compiler.reset()
    case = CASES[request.param].case()
    inputs = [case.make()]
    case.check(inputs[0])
    inputs += [case.make() for _ in range(copies_needed(inputs[0], 1, "cpu") - 1)]
    return request.param, case, inputs


CONTENDERS = sorted({name for recipe in CASES.values() for name in recipe.case().contenders})


@pytest.mark.parametrize("contender", CONTENDERS)
def test_operator(benchmark, built, contender) -> None:
    name, case, inputs = built
    if contender not in case.contenders:
        pytest.skip(f"{name} has no contender {contender}")
    chosen, turn = case.contenders[contender], itertools.cycle(inputs)
    benchmark.group = name
    benchmark.extra_info |= {"contender": contender, "baseline": case.baseline, "threads": torch.get_num_threads()}

    def setup():
        given = next(turn)
        return (given, chosen.prepare(given)), {}

    benchmark.pedantic(chosen.run, setup=setup, rounds=ROUNDS, warmup_rounds=3)
