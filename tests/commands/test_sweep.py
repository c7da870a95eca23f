"""`train --sweep`: what it reads from folders, and what it refuses. One that is killed and goes on: tests/examples."""

from pathlib import Path

import pytest

from megatron_entropic.commands.sweep_state import SweepState, plan_sweep
from megatron_entropic.config.loading import ConfigError, save_config
from megatron_entropic.config.sweep import sweep_runs
from megatron_entropic.observability.history import record_end, record_start
from tests.command_line import megatron_entropic


def test_a_folder_says_how_far_its_run_is(tmp_path: Path) -> None:
    given = [f"run.dir={tmp_path}", "trainer.seed=0,1,2,3", "trainer.steps=1"]
    _, runs = sweep_runs("quickstart", given)
    for run, code in zip(runs[1:], (0, 1, None), strict=True):
        save_config(run.cfg, run.cfg.run_dir / "config.yaml")
        record_start(run.cfg.run_dir, [])
        (run.cfg.run_dir / "metrics.jsonl").write_text('{"step": 0}\n')
        if code is not None:
            record_end(run.cfg.run_dir, code)
    assert [each.state for each in plan_sweep(runs)] == [SweepState.NEW, SweepState.DONE, SweepState.FAILED, SweepState.BEGUN]
    assert [each.state for each in plan_sweep(runs, overwrite=True)] == [SweepState.NEW] * 4

    _, longer = sweep_runs("quickstart", [*given[:2], "trainer.steps=5"])
    assert [each.state for each in plan_sweep(longer)] == [SweepState.NEW, SweepState.BEGUN, SweepState.FAILED, SweepState.BEGUN]
    resumed = plan_sweep(longer)[1].arguments("quickstart", overwrite=False)
    assert resumed == ["train", str(runs[1].cfg.run_dir), "--resume", "trainer.seed=1", "trainer.steps=5"]
    assert plan_sweep(runs)[3].arguments("quickstart", overwrite=False)[2:] == ["--resume"], "as it was saved"

    _, other = sweep_runs("quickstart", [*given, "optimizer.lr=1e-3"])
    with pytest.raises(ConfigError, match=r"seed=1 holds a run with other settings(.|\n)*\+ optimizer\.lr: 0\.001"):
        plan_sweep(other)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--dry-run",), "--dry-run goes with --sweep"),
        (("--sweep", "--resume", "trainer.seed=0,1"), "without --resume"),
        (("--sweep",), "no setting has several values"),
    ],
)
def test_wrong_ways_to_ask(words: tuple[str, ...], says: str) -> None:
    outcome = megatron_entropic("train", "quickstart", *words)
    assert outcome.code == 2
    assert says in outcome.output
