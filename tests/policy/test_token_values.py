"""rollout.record_tokens: what the loss's formula says, the same in every layout; training keeps its bits."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from megatron_entropic.algorithms import make_advantage
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.recording import RecordingError, read_rollouts
from megatron_entropic.rollout.token_recording import RecordedTokens, TokenWriter, read_tokens, token_file_name
from megatron_entropic.system.folder_lock import Fence
from megatron_entropic.trainer import train
from tests.observability.test_step_metrics import stats
from tests.run_ranks import run_ranks
from tests.tiny_models import save_deepened

SETTINGS = [
    "parallel.tensor=1",
    "batch.prompts_per_step=6",
    "batch.samples_per_prompt=4",
    "batch.mini_batches=2",
    "control.kind=entropic+aent",
    "control.coefficient_warmup_steps=0",
    "control.target_entropy=0.8",
    *("control.gains=fixed", "control.kp=5", "control.soft_setpoint=false"),
    "optimizer.lr=3e-5",
    "rollout.max_new_tokens=12",
    "trainer.steps=2",
    "trainer.seed=1",
    "trainer.tensorboard=false",
]
LAYOUTS = {
    "tp2": ["parallel.tensor=2"],
    "pp2": ["parallel.pipeline=2"],
    "dp2": ["parallel.data=2", "batch.max_tokens_per_micro_batch=64"],
}
RECORD = "rollout.record_tokens=true"


def run_rank(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


def run(folder: Path, *settings: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    cfg = load_config("quickstart", [*SETTINGS, *settings, f"run.dir={folder}"])
    run_ranks(run_rank, cfg.parallel.world_size, cfg)
    lines = read_metrics(folder / "metrics.jsonl")
    metrics = [{name: value for name, value in line.items() if name[:5] not in ("time/", "perf/")} for line in lines]
    return metrics, load_file(folder / "hf" / "model.safetensors")


def tokens_of(folder: Path, step: int) -> RecordedTokens:
    found = read_tokens(folder / "rollouts", step, [record.rollout for record in read_rollouts(folder / "rollouts", step)])
    assert found is not None
    return found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    save_deepened(folder / "model")
    run(folder / "recorded", "rollout.engine=local", RECORD, f"model.hf_path={folder / 'model'}")
    return folder / "recorded"


def replay(recorded: Path) -> list[str]:
    return [f"model.hf_path={recorded.parent / 'model'}", "rollout.engine=replay", f"rollout.replay_path={recorded / 'rollouts'}"]


def test_training_is_the_same_bit_for_bit_with_it_and_without(recorded: Path, tmp_path: Path) -> None:
    on, weights_on = run(tmp_path / "on", *replay(recorded), RECORD)
    off, weights_off = run(tmp_path / "off", *replay(recorded))
    assert on == off
    assert all(np.array_equal(weights_on[name], weights_off[name]) for name in weights_on)
    assert not list((tmp_path / "off" / "rollouts").glob("*tokens*"))
    assert len(list((tmp_path / "on" / "rollouts").glob("*tokens*"))) == 2
    assert any(line["control/alpha"] for line in on)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_records_the_same(recorded: Path, layout: str, tmp_path: Path) -> None:
    run(tmp_path / "run", *replay(recorded), *LAYOUTS[layout], RECORD)
    for step in (0, 1):
        ours, theirs = tokens_of(tmp_path / "run", step), tokens_of(recorded, step)
        assert ours.values.keys() == theirs.values.keys()
        assert ours.update == theirs.update
        for name in ours.values:
            np.testing.assert_allclose(np.concatenate(ours.values[name]), np.concatenate(theirs.values[name]), rtol=1e-5, atol=1e-5)


def test_the_record_is_what_the_loss_says(recorded: Path) -> None:
    metrics = read_metrics(recorded / "metrics.jsonl")
    for step in (0, 1):
        records, tokens = read_rollouts(recorded / "rollouts", step), tokens_of(recorded, step)
        values = {name: np.concatenate(parts).astype(np.float64) for name, parts in tokens.values.items()}
        lengths = [len(record.rollout.response_ids) for record in records]
        assert values["entropy"].mean() == pytest.approx(metrics[step]["policy/entropy"], rel=0.05)  # of two updates' means
        assert values["log_prob"] == pytest.approx(np.concatenate([record.rollout.log_probs for record in records]), abs=1e-4)
        assert (values["clamped_entropy"] <= values["entropy"] + 1e-6).all()
        assert {-1.0, 1.0} >= set(values["actuator"])
        rewards_PS = np.array([record.reward for record in records], dtype=np.float32).reshape(6, 4)
        advantage = np.repeat(make_advantage("grpo")(torch.from_numpy(rewards_PS)).numpy().reshape(-1), lengths)
        first = np.repeat(tokens.update, lengths) == 0  # of the first update the ratios are 1
        alpha = np.repeat([tokens.updates[number]["alpha"] for number in tokens.update], lengths)
        assert values["plain_weight"][first] == pytest.approx(advantage[first], abs=1e-5)
        effect = alpha * values["actuator"] * np.abs(advantage)
        assert (values["weight"] - values["plain_weight"])[first] == pytest.approx(effect[first], abs=1e-5)
    assert np.abs(effect).max() > 0, "alpha was 0"


def test_damaged_and_foreign_files_are_named(recorded: Path, tmp_path: Path) -> None:
    rollouts = [record.rollout for record in read_rollouts(recorded / "rollouts", 0)]
    assert read_tokens(tmp_path, 0, rollouts) is None
    path = tmp_path / token_file_name(0)
    whole = (recorded / "rollouts" / token_file_name(0)).read_bytes()
    for content, said in ((whole[:-9], "truncated"), (b"", "truncated"), (whole, "other")):
        path.write_bytes(content)
        others = rollouts[::-1] if said == "other" else rollouts
        with pytest.raises(ValueError, match=said) as refused:
            read_tokens(tmp_path, 0, others)
        assert str(path) in str(refused.value)


def test_a_resumed_run_forgets_what_it_does_again(recorded: Path, tmp_path: Path) -> None:
    """A run killed after two steps, whose checkpoint is of the first, resumed without recording, keeps nothing of the second."""
    run(tmp_path / "run", *replay(recorded), RECORD, "checkpoint.every=1", "checkpoint.keep=0")
    folder = tmp_path / "run"
    shutil.rmtree(folder / "checkpoints" / "step-000002")
    (folder / "checkpoints" / "latest").write_text("step-000001\n")
    run(folder, *replay(recorded))
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [0, 1]
    assert [path.name for path in sorted((folder / "rollouts").glob("*tokens*"))] == [token_file_name(0)]


def test_a_full_disk_is_named(recorded: Path, tmp_path: Path) -> None:
    rollouts = [record.rollout for record in read_rollouts(recorded / "rollouts", 0)]
    count = sum(len(rollout.response_ids) for rollout in rollouts)
    update = replace(stats(Coefficients()), tokens={"entropy": np.zeros(count, dtype=np.float32)})
    (tmp_path / f".{token_file_name(0)}.tmp").symlink_to("/dev/full")
    writer = TokenWriter(tmp_path, Fence(tmp_path, ""))
    writer.begin(0, rollouts, [update])
    with pytest.raises(RecordingError, match=r"step-000000\.tokens.* cannot be recorded: No space left on device"):
        writer.close()
    assert list(tmp_path.iterdir()) == []
