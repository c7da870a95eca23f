"""A step that cannot be recorded ends the run, and no checkpoint says that it was done."""

from pathlib import Path

import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.rollout.recording import RecordingError, recorded_steps
from megatron_entropic.trainer import train
from tests.run_ranks import run_ranks

SETTINGS = [
    "rollout.engine=local",
    "rollout.max_new_tokens=4",
    "parallel.tensor=1",
    "batch.prompts_per_step=2",
    "batch.samples_per_prompt=2",
    "trainer.steps=4",
    "trainer.tensorboard=false",
    "checkpoint.every=1",
]


def train_until_the_disk_is_full(cfg: Config) -> str:
    try:
        train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))
    except RecordingError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize("settings", [[], ["trainer.steps=2"], ["checkpoint.every=0"]])
def test_a_full_disk_ends_the_run_naming_the_file(tmp_path: Path, settings: list[str]) -> None:
    rollouts = tmp_path / "rollouts"
    rollouts.mkdir()
    (rollouts / ".step-000001.safetensors.zst.tmp").symlink_to("/dev/full")
    cfg = load_config("quickstart", [*SETTINGS, *settings, f"run.dir={tmp_path}"])
    (message,) = run_ranks(train_until_the_disk_is_full, 1, cfg)
    assert message == f"{rollouts}/step-000001.safetensors.zst: the rollouts of step 1 cannot be recorded: No space left on device"
    assert recorded_steps(rollouts) == [0]
    assert not (tmp_path / "checkpoints" / "step-000002").exists()
