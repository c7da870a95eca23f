"""A plan's entropy forecast: for every kind of control, quickly, and nothing where the simulation would not be the run's."""

import pytest

from megatron_entropic.config.loading import load_config
from megatron_entropic.planning.cluster import Assumptions
from megatron_entropic.planning.entropy import entropy_lines


def lines(*settings: str, assume: tuple[str, ...] = ()) -> list[str]:
    cfg = load_config("smollm2_135m", settings)
    return list(entropy_lines(cfg.control, cfg.batch, cfg.trainer.steps, Assumptions.of(assume)))


def test_a_run_that_holds_its_entropy() -> None:
    measured, held = lines("trainer.steps=60", assume=("entropy_gain=0.1",))
    assert measured == "Entropy: 96 samples measure it to 6.1% in a step (standard deviation), to 2.7% in five"
    assert held.startswith("  simulated, from its first measurement on, 60 updates: held to ")
    assert "within 5% of the target from update " in held


def test_the_same_whichever_entropy_is_steered_by() -> None:
    assert lines("control.steer_by=clamped_entropy") == lines()


@pytest.mark.parametrize(
    "setting", ["control.kind=none", "control.kind=aent", "control.gains=fixed", "control.preset=entropic_released"]
)
def test_no_promise_for_what_is_not_simulated(setting: str) -> None:
    assert len(lines(setting)) == 1


def test_a_target_that_the_run_is_too_short_for() -> None:
    assert "40 updates: the target is not reached, " in lines("control.target_entropy=0.3")[1]


def test_mini_batches_are_counted_and_the_simulation_is_short() -> None:
    assert ", 24 updates: " in lines("trainer.steps=6", "batch.mini_batches=4")[1]
    assert ", 100 updates: " in lines("trainer.steps=4000")[1]


def test_where_it_starts_is_said() -> None:
    nats = ("control.target_unit=nats", "control.target_entropy=2")
    assert "simulated, from the target on, 40" in lines(*nats)[1]
    assert "simulated, from the target on, before its schedule, 40" in lines(*nats, "control.target_points=[[10,1.5]]")[1]


@pytest.mark.parametrize("setting", ["trainer.steps=1", "control.target_entropy=0", "control.target_entropy=-1"])
def test_what_cannot_be_simulated_is_not(setting: str) -> None:
    assert len(lines(setting)) == 1
    assert len(lines(assume=("sample_noise=1e300",))) == 1
