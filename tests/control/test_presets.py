"""The presets are the authors' code: their update rules, written out in plain float64, against the controllers the presets make.

EntroPIC (arXiv 2511.15248): alpha is computed from the error and the integral, then the error joins the integral, without limit.
AEnt (arXiv 2509.03493): the coefficient moves by how far the clamped entropy lies outside its band, after a warm-up.
"""

import json
import random
from collections.abc import Callable

import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.control import PRESETS, preset
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Controller, Measurement, make_controller

UPDATES = 5000


def released_entropic(entropies: list[float], target: float = 0.1) -> list[float]:
    alphas, accumulated = [], 0.0
    for entropy in entropies:
        error = entropy - target
        alpha = 1.0 * error + 0.01 * accumulated
        alphas.append(-1.0 if alpha < -1.0 else 1.0 if alpha > 1.0 else alpha)
        accumulated += error
    return alphas


def released_aent(entropies: list[float]) -> list[float]:
    coefficients, coefficient = [], 2e-4
    for number, entropy in enumerate(entropies, start=1):
        if number > 29:
            if entropy < 0.05:
                coefficient += 1e-3 * (0.05 - entropy)
            elif entropy > 0.23:
                coefficient -= 1e-3 * (entropy - 0.23)
            coefficient = max(1e-5, min(3e-3, coefficient))
        coefficients.append(coefficient)
    return coefficients


def wandering(seed: int, centre: float) -> list[float]:
    """Entropies with noise, jumps to far levels that last, and long stays near `centre`: outputs saturate and come back."""
    rng = random.Random(seed)
    level, values = centre, []
    for _ in range(UPDATES):
        if rng.random() < 0.01:
            level = rng.choice([centre, centre, 0.0, rng.uniform(0.0, 3.0)])
        values.append(max(0.0, level + rng.gauss(0.0, 0.05)))
    return values


def outputs(make: Callable[[], Controller], values: list[float], seed: int) -> tuple[list[float], list[float]]:
    """(alphas, bonuses) after each measurement; at random updates a new controller continues from the state as JSON."""
    rng = random.Random(seed)
    controller, alphas, bonuses = make(), [], []
    for version, value in enumerate(values):
        if rng.random() < 0.02:
            state = json.dumps(controller.state_dict())
            controller = make()
            controller.load_state_dict(json.loads(state))
        # Authority and learning rate of any size: the released rules know nothing of them.
        controller.step(
            Measurement(
                entropy=value,
                clamped_entropy=value,
                version=version,
                executed=version + 1,
                learning_rate=rng.random(),
                active_fraction=rng.random(),
                authority=rng.gauss(0, 1),
                pressure=rng.gauss(0, 1),
            )
        )
        alphas.append(controller.coefficients().alpha)
        bonuses.append(controller.coefficients().bonus)
    return alphas, bonuses


@pytest.mark.parametrize("seed", range(4))
def test_entropic_released_is_the_authors_rule(seed: int) -> None:
    values = wandering(seed, centre=0.1)
    alphas, bonuses = outputs(lambda: make_controller(Config(control=preset("entropic_released"))), values, seed)
    expected = released_entropic(values)
    assert max(abs(alpha - wanted) for alpha, wanted in zip(alphas, expected, strict=True)) <= 1e-12
    assert set(bonuses) == {0.0}
    assert 0 < sum(abs(alpha) == 1.0 for alpha in expected) < UPDATES


def test_entropic_released_winds_up() -> None:
    """Far above the target for long, the released integral holds alpha at its limit long after the entropy has fallen below it."""
    values = [3.0] * 100 + [0.05] * 1000
    alphas, _ = outputs(lambda: make_controller(Config(control=preset("entropic_released"))), values, 0)
    assert alphas == pytest.approx(released_entropic(values), abs=1e-12, rel=0)
    assert alphas[-1] == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_aent_released_is_the_authors_rule(seed: int) -> None:
    values = wandering(seed, centre=0.14)
    alphas, bonuses = outputs(lambda: make_controller(Config(control=preset("aent_released"))), values, seed)
    expected = released_aent(values)
    assert max(abs(bonus - wanted) for bonus, wanted in zip(bonuses, expected, strict=True)) <= 1e-12
    assert set(alphas) == {0.0}
    assert expected[28] == 2e-4
    assert {1e-5, 3e-3} <= set(expected)
    assert len(set(expected)) > UPDATES / 20


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_on_the_command_line_is_the_preset(name: str) -> None:
    """Whatever the recipe had set before, every setting that a preset names has the preset's value, and later ones win."""
    control = load_config("quickstart", [f"control.preset={name}", "control.max_bad_steps=3"]).control
    assert {field: getattr(control, field) for field in PRESETS[name]} == PRESETS[name]
    assert control.max_bad_steps == 3
