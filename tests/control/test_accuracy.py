"""Forecast of the controller's accuracy: the less noise the closer, and the same numbers every time."""

import logging

import pytest

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.accuracy import Accuracy, expected_accuracy

HOLD = ControlConfig(target_entropy=1.0, target_unit="initial")


def accuracy(noise: float, gain: float = 0.02, updates: int = 100, control: ControlConfig = HOLD, mini_batches: int = 1) -> Accuracy:
    return expected_accuracy(control, noise=noise, gain=gain, updates=updates, mini_batches=mini_batches)


def test_less_noise_is_held_closer() -> None:
    few, many = accuracy(0.06), accuracy(0.01)
    assert few.noise == 0.06
    assert many.tracking < 0.5 * few.tracking < 0.06
    assert many.mean_error < 0.01
    assert many.settled is not None
    assert many.settled <= 25


def test_a_batch_of_512_times_8_at_a_small_learning_rate_is_held_within_two_percent() -> None:
    """Noise of 0.6 / sqrt(4096), and 0.5 to 2% of the entropy per update at alpha 1."""
    for gain in (0.005, 0.02):
        for control in (HOLD, ControlConfig(target_entropy=0.9, target_unit="initial")):
            assert accuracy(0.0094, gain, control=control).tracking < 0.02


def test_a_target_in_nats_is_taken_as_where_the_policy_starts() -> None:
    assert accuracy(0.02, control=ControlConfig(target_entropy=0.3)) == accuracy(0.02)


def test_what_cannot_be_reached_is_never_settled() -> None:
    far = ControlConfig(target_entropy=0.2, target_unit="initial")
    assert accuracy(0.01, gain=0.005, updates=40, control=far).settled is None


@pytest.mark.parametrize("mini_batches", [1, 4])
def test_seeded_and_silent(mini_batches: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert accuracy(0.03, mini_batches=mini_batches) == accuracy(0.03, mini_batches=mini_batches)
    assert not caplog.records
