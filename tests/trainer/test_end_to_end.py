"""The main job on the real stack: HF checkpoint -> two tensor-parallel ranks, two vLLM servers -> HF checkpoint and report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_entropic.observability.metrics import METRIC_FIELDS, read_metrics
from megatron_entropic.rollout.recording import read_rollouts
from megatron_entropic.tasks.decompose import Decompose
from tests.command_line import Outcome, megatron_entropic
from tests.tiny_models import TINY_DECOMPOSE

STEPS = 4
pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.distributed]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    run_dir = tmp_path_factory.mktemp("end_to_end") / "run"
    settings = [f"run.dir={run_dir}", f"trainer.steps={STEPS}", "batch.prompts_per_step=32", "optimizer.lr=1e-3", "trainer.report=true"]
    outcome = megatron_entropic("train", "quickstart", *settings, timeout=500)
    assert outcome.code == 0, outcome.output
    return run_dir, outcome


@pytest.fixture(scope="module")
def metrics(run: tuple[Path, Outcome]) -> list[dict[str, Any]]:
    return read_metrics(run[0] / "metrics.jsonl")


def test_it_leaves_everything_a_user_wants_and_no_process(run: tuple[Path, Outcome]) -> None:
    run_dir, outcome = run
    assert outcome.left_behind == []
    for name in ("config.yaml", "metrics.jsonl", "report.html", "hf/model.safetensors", "logs/vllm_0.log", "logs/vllm_1.log"):
        assert (run_dir / name).stat().st_size > 0, name
    assert list((run_dir / "plots").glob("*.png"))
    assert list((run_dir / "logs" / "tensorboard").glob("events*"))
    assert f"{STEPS} of {STEPS} steps done" in outcome.output
    assert str(run_dir / "report.html") in outcome.output


def test_metrics_hold_every_documented_field(metrics: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in metrics] == list(range(STEPS))
    assert all(METRIC_FIELDS.keys() <= line.keys() for line in metrics)
    assert metrics[0]["control/alpha"] == 0.0
    assert all(line["control/alpha"] != 0.0 for line in metrics[1:])


def test_sampler_and_trainer_agree(metrics: list[dict[str, Any]]) -> None:
    """After every weight update the servers' log-probs are those of the trainer's new weights."""
    assert max(line["rollout/logprob_gap"] for line in metrics) <= 1e-3
    assert {line["rollout/staleness_max"] for line in metrics} == {0}


def test_every_rollout_has_its_version_and_both_servers_answer_every_step(run: tuple[Path, Outcome]) -> None:
    for step in range(STEPS):
        records = read_rollouts(run[0] / "rollouts", step)
        assert len(records) == 32 * 8
        assert {(record.rollout.first_version, record.rollout.last_version) for record in records} == {(step, step)}
        assert {record.rollout.server for record in records} == {"vllm_0", "vllm_1"}


def test_recorded_rewards_are_the_verifiers(run: tuple[Path, Outcome]) -> None:
    task = Decompose(seed=0)
    records = read_rollouts(run[0] / "rollouts", STEPS - 1)
    assert [record.reward for record in records] == [task.score(record.problem, record.rollout.text) for record in records]
    assert 0 < sum(record.reward for record in records) < len(records)


def test_the_exported_model_is_the_trained_one(run: tuple[Path, Outcome], metrics: list[dict[str, Any]]) -> None:
    """transformers loads it, it is not the model we started with, and it still decomposes numbers."""
    before, after = load_file(TINY_DECOMPOSE / "model.safetensors"), load_file(run[0] / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert json.loads((run[0] / "hf" / "config.json").read_text()) == json.loads((TINY_DECOMPOSE / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(run[0] / "hf")
    tokenizer = AutoTokenizer.from_pretrained(run[0] / "hf")
    ids = tokenizer("347=", return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(ids, do_sample=False, max_new_tokens=16)[0, ids.shape[1] :], skip_special_tokens=True)
    first, second = text.split("+")
    assert int(first) + int(second) == 347
