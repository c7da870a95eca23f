"""Profiles of a run: traces of a window, who holds memory, marks, MFU, and the report when memory runs out."""

import gzip
import json
import logging
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_entropic import platform
from megatron_entropic.config import Config, ProfileConfig
from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.observability.memory_holders import held_by, holdings
from megatron_entropic.observability.memory_report import explain_out_of_memory, out_of_memory
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.observability.step_profiler import StepProfiler
from megatron_entropic.planning.flops import generation_flops, update_flops
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.engine import Policy
from megatron_entropic.rollout.recording import read_rollouts
from tests.command_line import megatron_entropic
from tests.run_ranks import run_ranks

SMALL = ("rollout.engine=local", "parallel.tensor=1", "batch.prompts_per_step=2", "batch.samples_per_prompt=2", "trainer.steps=9")
HUNGRY = """
import torch

calls = []


def hungry(rewards_PS):
    calls.append(1)
    if len(calls) == 3:  # in the third step
        torch.empty(2**50)
    return rewards_PS - rewards_PS.mean(dim=1, keepdim=True)
"""


def small(tmp_path: Path, **profile: object) -> Config:
    cfg = load_config("quickstart", [*SMALL, f"run.dir={tmp_path}", "batch.max_tokens_per_micro_batch=16", "rollout.max_new_tokens=5"])
    return replace(cfg, profile=ProfileConfig(**profile))  # type: ignore[arg-type]


def batch() -> Batch:
    """Four samples of eight tokens: two micro-batches of sixteen."""
    return Batch([Sample([2, 3, 4], [5, 6, 7, 8, 9], [-1.0] * 5, 1.0 - 2 * (number % 2)) for number in range(4)])


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_records_its_window_and_says_who_held_what_when_memory_ran_out(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HUNGRY)
    run = tmp_path / "run"
    profile = ("profile.steps=[2,2]", "profile.memory=true", "profile.peak_tflops=0.5")
    outcome = megatron_entropic(
        "train", "quickstart", *SMALL, *profile, f"algorithm.advantage={tmp_path}/mine.py:hungry", f"run.dir={run}"
    )
    assert outcome.code == 1, outcome.output
    assert outcome.left_behind == []
    report = run / "profile" / "out-of-memory-rank-0.txt"
    errors = [line for line in outcome.output.splitlines() if "error: " in line]
    assert len(errors) == 1, outcome.output
    assert re.search(r"rank 0 ran out of memory: .*DefaultCPUAllocator: can't allocate memory", errors[0])
    assert re.search(rf"most is held by \w+ \(.*\), lowered by .*; all of it: {report}", errors[0])
    said = report.read_text()
    for words in ("weights ", "gradients ", "moments ", "activations ", "logits tiles", "model.recompute=full", "The largest of the"):
        assert words in said, said

    assert sorted(path.name for path in (run / "profile").iterdir()) == [
        *("memory-step-000002-rank-0.json", "out-of-memory-rank-0.txt", "trace-step-000002-rank-0.json.gz")
    ]
    names = Counter(event.get("name") for event in json.loads(gzip.decompress((run / "profile" / TRACE).read_bytes()))["traceEvents"])
    assert names["rollout"] >= 1
    assert {"update", "sync", "optimizer step", "micro-batch: forward", "aten::mm"} <= set(names)
    memory = json.loads((run / "profile" / "memory-step-000002-rank-0.json").read_text())
    assert (memory["step"], len(memory["largest_tensors"])) == (2, 30)
    check_throughput(run)


TRACE = "trace-step-000002-rank-0.json.gz"


def check_throughput(run: Path) -> None:
    """MFU and tokens a second follow from the recorded rollouts and the step's times."""
    line = read_metrics(run / "metrics.jsonl")[0]
    lengths = [(len(r.rollout.prompt_ids), len(r.rollout.response_ids)) for r in read_rollouts(run / "rollouts", 0)]
    arch = Architecture.from_hf(load_config("quickstart").model.hf_path)
    assert line["perf/update_tokens_per_s"] == pytest.approx(sum(map(sum, lengths)) / line["time/update_s"])
    assert line["perf/rollout_tokens_per_s"] == pytest.approx(sum(r for _, r in lengths) / line["time/rollout_s"])
    trained = update_flops(arch, lengths, load_config("quickstart").control.response_share)
    assert line["perf/update_mfu"] == pytest.approx(trained / (line["time/update_s"] * 0.5e12))
    assert line["perf/rollout_mfu"] == pytest.approx(generation_flops(arch, lengths, 2) / (line["time/rollout_s"] * 0.5e12))


@pytest.mark.distributed
def test_marks_name_phases_and_micro_batches_where_they_are_on_and_cost_nothing_else(tmp_path: Path) -> None:
    run_ranks(check_marks, 1, tmp_path)


def check_marks(tmp_path: Path) -> None:
    cfg = small(tmp_path, marks=True)
    parallel = initialize_parallel(cfg.parallel, 0)
    policy = Policy(cfg, parallel)

    def marked() -> Counter[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            policy.update(batch(), Coefficients())
        return Counter(event.name for event in recorded.events())

    names = marked()
    assert not any("micro-batch" in name or "passes" in name for name in names)
    profiler = StepProfiler(cfg, parallel)
    names = marked()
    profiler.close()
    profiler.close()
    # The update's two, and one of the sample on which its effect is measured.
    assert names["micro-batch: forward"] == names["micro-batch: output layer and loss"] == 3
    assert (names["passes with gradients"], names["passes without gradients"], names["optimizer step"]) == (1, 1, 1)
    assert not platform.mark.on


@pytest.mark.distributed
def test_what_a_policy_holds_is_what_planning_expects(tmp_path: Path) -> None:
    run_ranks(check_holdings, 1, tmp_path)


def check_holdings(tmp_path: Path) -> None:
    base = small(tmp_path)
    parallel = initialize_parallel(base.parallel, 0)
    for dtype in ("float32", "bfloat16"):
        cfg = replace(base, model=replace(base.model, dtype=dtype))
        policy = Policy(cfg, parallel)
        policy.update(batch(), Coefficients())
        held = held_by(policy)
        rows = {row.name: row for row in holdings(cfg, parallel, policy)}
        for name in ("weights", "gradients", "masters", "moments"):
            assert rows[name].now == held[name]
            assert held[name] == pytest.approx(rows[name].expected, rel=0.01), (dtype, name)
    assert held["masters"] == pytest.approx(2 * held["weights"], rel=0.01), "float32 copies of bfloat16 weights"


@pytest.mark.distributed
def test_traces_are_bounded_and_a_full_disk_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_ranks(check_traces, 1, tmp_path, caplog)


def check_traces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = small(tmp_path / "run", steps=(1, 3), max_trace_mb=0.001)
    parallel = initialize_parallel(cfg.parallel, 0)

    def recorded(cfg: Config) -> list[str]:
        profiler = StepProfiler(cfg, parallel)
        for step in range(4):
            profiler.begin(step)
            torch.ones(3).sum()
            profiler.end(step, None)
        profiler.close()
        return sorted(path.name for path in (tmp_path / "run" / "profile").glob("*"))

    with caplog.at_level(logging.WARNING):
        assert recorded(cfg) == []
    assert "profile.max_trace_mb=0.001" in caplog.text
    assert recorded(replace(cfg, profile=ProfileConfig(steps=(2, 3)))) == [f"trace-step-00000{n}-rank-0.json.gz" for n in (2, 3)]
    (tmp_path / "file").write_text("")
    recorded(replace(cfg, run=replace(cfg.run, dir=tmp_path / "file" / "run"), profile=ProfileConfig(steps=(1, 2))))
    assert "could not be written, and no more is recorded" in caplog.text
    assert not platform.mark.on


@pytest.mark.distributed
def test_what_says_that_memory_ran_out(tmp_path: Path) -> None:
    run_ranks(check_errors, 1, tmp_path)


def check_errors(tmp_path: Path) -> None:
    def failed_with(error: BaseException, cause: BaseException | None = None) -> BaseException:
        error.__cause__ = cause
        return error

    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert out_of_memory(real.value) is real.value
    assert out_of_memory(failed_with(ValueError("x"), real.value)) is real.value
    assert out_of_memory(MemoryError()) is not None
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried")) is not None
    assert out_of_memory(RuntimeError("shapes differ")) is None
    assert out_of_memory(None) is None
    cfg = small(tmp_path / "run")
    parallel = initialize_parallel(cfg.parallel, 0)
    early = explain_out_of_memory(cfg, parallel, None, real.value)
    assert "the policy was not made yet" in str(early)
    (tmp_path / "file").write_text("")
    nowhere = replace(cfg, run=replace(cfg.run, dir=tmp_path / "file" / "run"))
    assert "could not be written" in str(explain_out_of_memory(nowhere, parallel, None, real.value))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["profile.steps=[3,2]"], "1 <= first <= last"),
        (["profile.steps=[0,2]"], "1 <= first <= last"),
        (["profile.steps=[1,2]", "profile.ranks=[0,2]"], "the layout has ranks 0 to 1"),
        (["profile.ranks=[]"], "must list ranks"),
    ],
)
def test_windows_and_ranks_that_are_none(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("quickstart", overrides)
    assert says in str(raised.value)
