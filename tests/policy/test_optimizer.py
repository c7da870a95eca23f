"""The learning-rate schedule, update by update."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_entropic.config import OptimizerConfig
from megatron_entropic.policy.optimizer import make_scheduler


def learning_rates(updates: int, **settings: Any) -> list[float]:
    optimizer: Any = SimpleNamespace(param_groups=[{}])
    scheduler = make_scheduler(OptimizerConfig(lr=1.0, **settings), optimizer, updates=updates)
    rates = []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(increment=1)
    return rates


def test_constant_is_constant_from_the_first_update() -> None:
    assert learning_rates(4) == [1.0] * 4


def test_warm_up_rises_linearly_and_wastes_no_update() -> None:
    assert learning_rates(6, warmup_updates=3) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_decay_ends_at_min_lr() -> None:
    linear = learning_rates(5, schedule="linear", min_lr=0.2)
    assert linear == pytest.approx([1.0, 0.84, 0.68, 0.52, 0.36])
    cosine = learning_rates(100, schedule="cosine", min_lr=0.1, warmup_updates=10)
    assert cosine[10] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(cosine[10:]))
    assert cosine[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_warm_up_longer_than_the_run_keeps_its_slope() -> None:
    assert learning_rates(3, warmup_updates=49) == pytest.approx([0.02, 0.04, 0.06])
