"""A target asked for in mid-run: it wins over the schedule, and gives way to it again."""

import math

import pytest

from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.control import Controller, Measurement, make_controller


def schedule() -> Controller:
    """1 nat at update 0, falling by 0.01 nats an update to 0 at update 100."""
    control = ControlConfig(kind="entropic", target_entropy=1.0, target_points=((100, 0.0),), probe_updates=0)
    return make_controller(Config(control=control))


def targets(controller: Controller, asked: dict[int, float], updates: range) -> list[float]:
    """The target after each update, with a request in some of them."""
    seen = []
    for update in updates:
        controller.step(Measurement(1.0, version=update - 1, executed=update, requested_target=asked.get(update)))
        seen.append(controller.report()["target_entropy"])
    return seen


def test_a_request_stays_until_the_schedule_is_asked_for_again() -> None:
    assert targets(schedule(), {3: 0.7, 5: 0.6, 7: math.nan}, range(1, 10)) == pytest.approx(
        [0.99, 0.98, 0.7, 0.7, 0.6, 0.6, 0.93, 0.92, 0.91]
    )


def test_a_request_is_state() -> None:
    first, second = schedule(), schedule()
    targets(first, {2: 0.7}, range(1, 4))
    second.load_state_dict(first.state_dict())
    assert targets(second, {}, range(4, 7)) == [0.7] * 3
    assert second.state_dict() != first.state_dict()
    targets(first, {}, range(4, 7))
    assert second.state_dict() == first.state_dict()


def test_a_request_that_comes_with_a_bad_measurement_is_not_lost() -> None:
    controller = schedule()
    targets(controller, {}, range(1, 3))
    controller.step(Measurement(math.nan, version=2, executed=3, requested_target=0.5))
    assert targets(controller, {}, range(4, 6)) == [0.5, 0.5]
