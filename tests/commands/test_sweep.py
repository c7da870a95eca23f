"""`train --sweep`: runs one after the other, killed, gone on with, with a run that fails, and compared."""

import signal
from pathlib import Path

import pytest

from megatron_entropic.commands.sweep_state import State, plan_sweep
from megatron_entropic.config.loading import ConfigError, save_config
from megatron_entropic.config.sweep import sweep_runs
from megatron_entropic.observability.history import read_history, record_end, record_start
from megatron_entropic.observability.metrics import read_metrics
from tests.command_line import megatron_entropic
from tests.running import Running

SMALL = (
    *["rollout.engine=local", "parallel.tensor=1", "batch.prompts_per_step=2", "batch.samples_per_prompt=2"],
    *["rollout.max_new_tokens=4", "trainer.export_hf=false", "trainer.tensorboard=false", "checkpoint.every=1"],
)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_sweep_goes_on_where_it_was_past_a_run_that_fails(tmp_path: Path) -> None:
    """The first run is done, the second is killed with the sweep at its second step or later, the third cannot learn."""
    sweep = ("train", "quickstart", *SMALL, f"run.dir={tmp_path / 'a sweep'}", "trainer.steps=12", "control.target_entropy=0.8,0.9,99")
    first, second, third = (tmp_path / "a sweep" / f"target_entropy={target}" for target in (0.8, 0.9, 99))
    first.parent.mkdir()
    with Running(second, *sweep, "--sweep") as running:
        assert running.wait_until(lambda: running.steps >= 2)
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    assert read_history(first)[-1].code == 0
    begun = len(read_metrics(second / "metrics.jsonl"))
    stamp = (first / "metrics.jsonl").stat().st_mtime_ns

    again = megatron_entropic(*sweep, "--sweep")
    assert again.code == 1, again.output
    assert again.left_behind == []
    assert (first / "metrics.jsonl").stat().st_mtime_ns == stamp, "what is done is not run again"
    assert [line["step"] for line in read_metrics(second / "metrics.jsonl")] == list(range(12))
    assert begun < 12
    assert f"{State.FAILED:8}{third}" in again.output
    assert "no policy over this vocabulary has more than" in again.output
    assert "2 of 3 runs done" in again.output
    listed = megatron_entropic(*sweep, "--sweep", "--dry-run")
    assert listed.output.count(f"\n{State.DONE:8}") == 2
    page = megatron_entropic("report", str(tmp_path / "a sweep"))
    assert page.output == f"{tmp_path / 'a sweep' / 'comparison.html'}\n"
    assert "control.target_entropy" in (tmp_path / "a sweep" / "comparison.html").read_text()


def test_a_folder_says_how_far_its_run_is(tmp_path: Path) -> None:
    given = [f"run.dir={tmp_path}", "trainer.seed=0,1,2,3", "trainer.steps=1"]
    _, runs = sweep_runs("quickstart", given)
    for run, code in zip(runs[1:], (0, 1, None), strict=True):
        save_config(run.cfg, run.cfg.run_dir / "config.yaml")
        record_start(run.cfg.run_dir, [])
        (run.cfg.run_dir / "metrics.jsonl").write_text('{"step": 0}\n')
        if code is not None:
            record_end(run.cfg.run_dir, code)
    assert [each.state for each in plan_sweep(runs)] == [State.NEW, State.DONE, State.FAILED, State.BEGUN]
    assert [each.state for each in plan_sweep(runs, overwrite=True)] == [State.NEW] * 4

    _, longer = sweep_runs("quickstart", [*given[:2], "trainer.steps=5"])
    assert [each.state for each in plan_sweep(longer)] == [State.NEW, State.BEGUN, State.FAILED, State.BEGUN]
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
