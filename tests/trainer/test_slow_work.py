"""A run in which everything that only rank 0 does takes longer than a collective may."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.distributed.host_line import close_host_line
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability import run_output
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.policy import weights
from megatron_entropic.rollout import recording, source
from megatron_entropic.rollout.local_engine import LocalEngine
from megatron_entropic.rollout.types import Finished, NamedWeights, Prompt, Rollout
from megatron_entropic.trainer import train
from tests.run_ranks import run_ranks

LIMIT_S = 2.0
SLOW_S = 3.0


class SlowEngine(LocalEngine):
    """Takes its time over everything, also between two tensors of the stream."""

    def start(self) -> None:
        time.sleep(SLOW_S)

    def generate(self, prompts: Sequence[Prompt], samples_per_prompt: int, finished: Finished | None = None) -> list[Rollout]:
        time.sleep(SLOW_S)
        return super().generate(prompts, samples_per_prompt, finished)

    def sync_weights(self, weights: NamedWeights, version: int) -> None:
        super().sync_weights(_slowly(weights), version)


def _slowly(tensors: NamedWeights) -> Any:
    for number, named in enumerate(tensors):
        if number == 5:
            time.sleep(SLOW_S)
        yield named


def _slow_write(original: Any) -> Any:
    def write(out: Path, tensors: NamedWeights, *args: Any, **options: Any) -> Any:
        return original(out, _slowly(tensors), *args, **options)

    return write


def _slow_record(original: Any) -> Any:
    def encoded(*args: Any) -> Any:
        time.sleep(SLOW_S)
        return original(*args)

    return encoded


def train_slowly(cfg: Config) -> None:
    source.make_engine = lambda cfg: SlowEngine(  # a forked process of its own: nothing to undo
        cfg.rollout, model_dir=model_folder(cfg.model.hf_path).hf_dir, dtype=cfg.model.dtype, seed=cfg.trainer.seed
    )
    weights.PIECE_BYTES = 2**16
    run_output.write_hf = _slow_write(run_output.write_hf)
    recording.encoded = _slow_record(recording.encoded)
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))
    close_host_line()


@pytest.mark.slow
@pytest.mark.distributed
def test_no_work_of_rank_zero_is_limited_by_what_a_collective_may_take(tmp_path: Path) -> None:
    overrides = [
        "rollout.engine=local",
        "rollout.max_new_tokens=4",
        "parallel.tensor=2",
        f"parallel.timeout_s={LIMIT_S}",
        "batch.prompts_per_step=2",
        "batch.samples_per_prompt=2",
        "trainer.steps=1",
        "trainer.tensorboard=false",
        "checkpoint.every=1",
        f"run.dir={tmp_path}",
    ]
    run_ranks(train_slowly, 2, load_config("quickstart", overrides))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    assert (tmp_path / "hf" / "config.json").exists()
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
