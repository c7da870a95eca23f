"""Every `control.kind` trains: two steps of two updates each through the whole trainer, with the local engine."""

import math
from pathlib import Path

import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.control import KINDS, settings_read_by
from megatron_entropic.config.loading import load_config
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.trainer import train
from tests.run_ranks import run_ranks

SETTINGS = (
    "parallel.tensor=1",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "batch.mini_batches=2",
    "optimizer.lr=1e-3",
    "rollout.engine=local",
    "rollout.max_new_tokens=6",
    "trainer.steps=2",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
)
CONTROL = {"target_entropy": "2.0", "coefficient": "1e-3", "cov_share": "0.1", "cov_low": "0.01"}


def run_rank(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains(kind: str, tmp_path: Path) -> None:
    read = settings_read_by(kind)
    control = [f"control.{name}={value}" for name, value in CONTROL.items() if name in read]
    cfg = load_config("quickstart", [*SETTINGS, *control, f"control.kind={kind}", f"run.dir={tmp_path / 'run'}"])
    run_ranks(run_rank, 1, cfg)
    first, last = read_metrics(cfg.run_dir / "metrics.jsonl")
    for line in (first, last):
        assert all(math.isfinite(value) for value in line.values() if value is not None)
        assert line["optimizer/skipped_updates"] == 0
        assert line["grad_norm"] > 0
    selects = kind in ("clip_cov", "kl_cov")
    assert (last["control/selected_fraction"] is not None) == selects
    if selects:
        assert 0.01 < last["control/selected_fraction"] <= 0.1
    assert (last["control/target_entropy"] == 2.0) == (kind in ("entropic", "entropic+aent", "aec"))
    assert ((last["control/coefficient"] or 0.0) > 0) == (kind in ("aent", "entropic+aent", "entropy_bonus", "aec"))
    # One update of each step's two has ratios other than 1; only there does KL-Cov's penalty act.
    assert (last["loss/total"] != last["loss/policy"]) == (kind not in ("none", "nsr", "clip_cov"))
