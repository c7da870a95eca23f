"""One line of metrics for every kind of control: all documented fields, null where the kind has no such thing."""

from pathlib import Path

import pytest

from megatron_entropic.config import BatchConfig, Config, ControlConfig
from megatron_entropic.config.control import KINDS
from megatron_entropic.control import Coefficients, Measurement, make_controller
from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability.metrics import METRIC_FIELDS, MetricsWriter, read_metrics
from megatron_entropic.observability.step_metrics import step_metrics
from megatron_entropic.policy.update_stats import UpdateStats
from tests.observability.synthetic_runs import synthetic_rollouts

TIMES = {"time/step_s": 4.0, "time/rollout_s": 2.0, "time/update_s": 1.0, "time/sync_s": 0.5}


def stats(coefficients: Coefficients) -> UpdateStats:
    numbers = dict.fromkeys(UpdateStats.__dataclass_fields__, 0.5)
    measured = Measurement(0.9, 0.7, version=0, executed=1, active_fraction=0.5, authority=0.1, pressure=0.0, bonus_authority=0.2)
    return UpdateStats(**numbers | {"measurement": measured, "coefficients": coefficients})  # type: ignore[arg-type]


def line_of(tmp_path: Path, control: ControlConfig) -> dict[str, float | None]:
    """The metrics of a step in which the controller was stepped once, read back from the file."""
    cfg = Config(control=control, batch=BatchConfig(prompts_per_step=2, samples_per_prompt=4, mini_batches=2))  # kl_cov needs two
    controller, (rollouts, _, rewards) = make_controller(cfg), synthetic_rollouts(0)
    update = stats(controller.coefficients())
    controller.step(update.measurement)
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.log(0, step_metrics(cfg, 0, rollouts, rewards, [update], controller, TIMES))
    writer.close()
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_control_has_every_documented_field(tmp_path: Path, kind: str) -> None:
    line = line_of(tmp_path, ControlConfig(kind=kind, target_entropy=0.8))  # type: ignore[arg-type]
    assert METRIC_FIELDS.keys() <= line.keys()
    steered = kind in ("entropic", "entropic+aent")
    for name in ("alpha", "phase", "setpoint", "kp", "plant_gain", "predicted_entropy", "measured_entropy", "bonus_unit", "effort"):
        assert (line[f"control/{name}"] is not None) == steered, name
    assert (line["control/coefficient"] is not None) == (kind in ("entropic", "entropic+aent", "aent", "entropy_bonus", "aec"))
    if steered:
        assert line["control/target_entropy"] == 0.8
        assert line["control/phase"] == Phase.IDLE.number  # of the update made, not of the next


def test_a_target_in_units_of_the_start_is_logged_in_nats(tmp_path: Path) -> None:
    line = line_of(tmp_path, ControlConfig(kind="entropic", target_entropy=0.5, target_unit="initial"))
    assert line["control/target_entropy"] == pytest.approx(0.45)


def test_without_handoff_there_is_no_bonus(tmp_path: Path) -> None:
    assert line_of(tmp_path, ControlConfig(kind="entropic", handoff=False))["control/coefficient"] is None
