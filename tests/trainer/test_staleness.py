"""`rollout.max_staleness`: rollouts come from the versions of the rule, and a stale run is as repeatable as any other."""

from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.recording import read_rollouts, recorded_steps
from megatron_entropic.trainer import train
from tests.run_ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 4
SETTINGS = (
    "control.gains=fixed",
    "control.soft_setpoint=false",
    "control.kp=20",  # alpha moves enough for its gain to be seen: an estimate of nearly nothing is mostly rounding
    "parallel.tensor=1",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "batch.max_tokens_per_micro_batch=256",
    "optimizer.lr=1e-4",
    "rollout.engine=local",
    "rollout.max_new_tokens=8",
    f"trainer.steps={STEPS}",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
)
CLOCKED = ("time/", "perf/")


def run_rank(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


def run(folder: Path, *settings: str) -> list[dict[str, Any]]:
    """Metrics of a run in `folder`, without what a clock measured and what was not."""
    cfg = load_config("quickstart", [*SETTINGS, f"run.dir={folder}", *settings])
    run_ranks(run_rank, cfg.parallel.world_size, cfg)
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if value is not None and not name.startswith(CLOCKED)} for line in lines]


@pytest.fixture(scope="module", params=[1, 2])
def stale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, list[dict[str, Any]]]:
    """(max_staleness, folder, metrics) of a run with the local engine on one rank."""
    folder = tmp_path_factory.mktemp("stale") / "run"
    return request.param, folder, run(folder, f"rollout.max_staleness={request.param}")


def test_every_step_trains_on_the_version_of_the_rule(stale: tuple[int, Path, list[dict[str, Any]]]) -> None:
    max_staleness, folder, metrics = stale
    assert recorded_steps(folder / "rollouts") == list(range(STEPS))  # and nothing beyond the last step
    for step, line in enumerate(metrics):
        version = max(0, step - max_staleness)
        records = read_rollouts(folder / "rollouts", step)
        assert {(record.rollout.first_version, record.rollout.last_version) for record in records} == {(version, version)}
        assert {record.rollout.prompt_index for record in records} == set(range(8 * step, 8 * step + 8))
        assert line["rollout/staleness_max"] == step - version
        # Only fresh rollouts have the log-probs of the policy that is updated on them.
        assert (line["rollout/logprob_gap"] < 1e-4) == (step == version), line


def test_a_stale_run_repeats_itself_bit_for_bit(stale: tuple[int, Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    max_staleness, _, metrics = stale
    assert run(tmp_path / "again", f"rollout.max_staleness={max_staleness}") == metrics


def test_two_tensor_ranks_train_the_same(stale: tuple[int, Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    max_staleness, _, expected = stale
    metrics = run(tmp_path / "tp2", f"rollout.max_staleness={max_staleness}", "parallel.tensor=2")
    for line, expected_line in zip(metrics, expected, strict=True):
        gap, expected_gap = line.pop("rollout/logprob_gap"), expected_line["rollout/logprob_gap"]
        assert gap == pytest.approx(expected_gap, abs=1e-5)  # a difference of log-probs of several nats each
        # The gain over its error: both are compared below, of which the first update leaves hardly more than rounding.
        confidence = line.pop("control/plant_confidence")
        if line["control/plant_gain_error"]:
            assert confidence == pytest.approx(-line["control/plant_gain"] / line["control/plant_gain_error"], rel=1e-12)
        assert line == pytest.approx({name: expected_line[name] for name in line}, rel=1e-5, abs=2e-6)


def test_a_replay_of_a_stale_run_is_that_run(stale: tuple[int, Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    max_staleness, folder, metrics = stale
    replay = ("rollout.engine=replay", f"rollout.replay_path={folder / 'rollouts'}", f"rollout.max_staleness={max_staleness}")
    assert run(tmp_path / "replay", *replay) == metrics


def test_the_controller_sees_the_policy_about_to_be_updated(stale: tuple[int, Path, list[dict[str, Any]]]) -> None:
    """The log-prob pass measures before the first update: already step 0 is steered, by the entropy of its own policy."""
    _, _, metrics = stale
    cfg = load_config("quickstart", SETTINGS).control
    error = metrics[0]["policy/entropy"] - cfg.target_entropy
    assert metrics[0]["control/alpha"] == pytest.approx(max(-cfg.alpha_limit, min(cfg.alpha_limit, cfg.kp * error)), rel=1e-4)
