"""Parts of rewards, what length costs, and judges behind HTTP: through the scorer into the metrics, and the same after a resume."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.config import Config, RewardConfig, RolloutConfig, TaskConfig
from megatron_entropic.config.resume import differences
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.prompt_encoder import load_tokenizer
from megatron_entropic.rollout.recording import RolloutWriter, read_counts, read_rollouts
from megatron_entropic.rollout.scoring import Scorer, part_means
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.rollout.vocabulary import Vocabulary
from megatron_entropic.tasks import Problem, make_task
from megatron_entropic.tasks.verification import Verdict, VerifierError
from tests.command_line import megatron_entropic
from tests.rollout.tokens import one_token_rollout
from tests.tasks.verifiers.servers import said, serving
from tests.tiny_models import TINY_DECOMPOSE

VOCABULARY = Vocabulary(load_tokenizer(TINY_DECOMPOSE))
TASK = """
import json
from megatron_entropic.tasks import Problem
from megatron_entropic.tasks.decompose import make_decompose
from megatron_entropic.tasks.verifiers import make_verifier

class Parts:
    def __init__(self, options, seed):
        self.inner = make_decompose({}, seed)
        self.inline = options.get("inline", False)
        self.big = make_verifier("regex", {"pattern": "[5-9].*[5-9]|text"})

    def problem(self, index):
        return self.inner.problem(index)

    def score(self, problem, response):
        right = self.inner.score(problem, response)
        parts = {"right": right, "big": self.big.score("", {}, response)}
        return {**parts, "score": 0.5 * parts["right"] + 0.5 * parts["big"]} if response[:1] != "1" else right
"""


def of_length(sample: int, tokens: int) -> Rollout:
    ids = np.full(tokens, 3, dtype=np.int32)
    return replace(one_token_rollout(0, sample, f"text {sample}"), response_ids=ids, log_probs=np.zeros(tokens, dtype=np.float32))


def task_of(folder: Path, source: str = TASK) -> TaskConfig:
    (folder / "my task.py").write_text(source)
    return TaskConfig(name=f"{folder / 'my task.py'}:Parts")


def test_means_are_over_the_answers_that_have_the_part() -> None:
    verdicts = [Verdict(1.0, parts={"a": 1.0, "b": 0.25}), Verdict(0.0, parts={"a": 0.0}), Verdict(1.0), Verdict(0.0, "limit", "long")]
    assert part_means(verdicts) == {"reward/part/a": 0.5, "reward/part/b": 0.25}
    assert part_means([Verdict(1.0)]) == {}


@pytest.mark.parametrize("inline", [True, False])
def test_parts_and_the_cost_of_length_reach_the_metrics_and_the_record(tmp_path: Path, inline: bool) -> None:
    cfg = replace(task_of(tmp_path), options={"inline": inline})
    reward = RewardConfig(overlong_buffer=4, overlong_penalty=0.5, workers=1)
    task = make_task(cfg, 7)
    rollouts = [of_length(sample, tokens) for sample, tokens in enumerate((1, 6, 8, 10))]
    scorer = Scorer(task, cfg, 7, reward, VOCABULARY, max_tokens=10)
    try:
        problems = {0: task.problem(0)}
        scores = scorer.finish(0, rollouts, problems)
    finally:
        scorer.close()
    assert scores.rewards == [
        0.5,
        0.5,
        0.25,
        0.0,
    ]  # "text n" is wrong, and has the other part; the last four of ten tokens cost up to 0.5
    expected = {"reward/part/right": 0.0, "reward/part/big": 1.0, "reward/overlong": -0.1875}
    assert {name: value for name, value in scores.metrics.items() if name in expected} == expected
    writer = RolloutWriter(tmp_path / "rollouts")
    writer.write(0, rollouts, problems, scores.rewards, scores.counts)
    writer.close()
    assert read_counts(tmp_path / "rollouts", 0) == scores.counts
    assert [record.reward for record in read_rollouts(tmp_path / "rollouts", 0)] == scores.rewards


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 4000), st.floats(0.1, 10))
def test_length_costs_what_dapo_takes(tokens: int, longest: int, buffer: int, penalty: float) -> None:
    if tokens > longest or buffer >= longest:
        return
    scorer = Scorer.__new__(Scorer)
    scorer._max_tokens, scorer.reward = longest, RewardConfig(overlong_buffer=buffer, overlong_penalty=penalty)
    exceeding = tokens - (longest - buffer)
    assert -scorer._cost(of_length(0, tokens)) == pytest.approx(min(-exceeding / buffer * penalty, 0.0))


def test_evaluations_do_not_charge_for_length(tmp_path: Path) -> None:
    cfg = replace(task_of(tmp_path), options={"inline": True})
    scorer = Scorer(make_task(cfg, 7), cfg, 7, RewardConfig(overlong_buffer=4), VOCABULARY)
    assert scorer.finish(0, [of_length(0, 10)], {0: make_task(cfg, 7).problem(0)}).rewards == [0.5]
    scorer.close()


def test_the_settings_of_length_are_bounded_and_part_of_the_method() -> None:
    with pytest.raises(ValueError, match=r"reward.overlong_buffer=8 must be below rollout.max_new_tokens=8"):
        Config(reward=RewardConfig(overlong_buffer=8), rollout=RolloutConfig(max_new_tokens=8))
    (change,) = differences({}, {"reward": {"overlong_buffer": 4}})
    assert not change.allowed
    assert change.consequence == "the length of responses costs something else from here on"


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("{'a': 1.0}", "ValueError: returned parts without a score: a"),
        ("{'a b': 1.0, 'score': 1}", "ValueError: returned a part named 'a b'; letters"),
        ("{'a': float('nan'), 'score': 1}", "ValueError: returned nan as the part a, not a finite number"),
        ("{'a': '1', 'score': 1}", "ValueError: returned '1' as the part a"),
        ("{'a': 1, 'score': 2}", "returned 2.0, which is not a score in [0, 1]"),
        ("{'score': '1'}", "returned the text '1', not a number"),
    ],
)
def test_parts_that_are_none_are_failures(tmp_path: Path, returned: str, reason: str) -> None:
    source = TASK.replace("        right = self.inner", f"        return {returned}\n        right = self.inner")
    cfg = replace(task_of(tmp_path, source), options={"inline": True})
    scorer = Scorer(make_task(cfg, 7), cfg, 7, RewardConfig(on_failure="stop"), VOCABULARY)
    with pytest.raises(VerifierError) as failure:
        scorer.finish(0, [of_length(0, 1)], {0: Problem("p", {})})
    assert reason in str(failure.value)
    scorer.close()


class Judged:
    """A task whose answers a judge behind HTTP judges, as rows of data are."""

    inline = True  # no process: threads alone

    def __init__(self, options: Any, seed: int) -> None:
        from megatron_entropic.tasks.verifiers import make_verifier

        self.judge = make_verifier("judge", options)

    def problem(self, index: int) -> Problem:
        return Problem("p", {"answer": "4"})

    def waits(self, problem: Problem) -> bool:
        return self.judge.waits  # type: ignore[attr-defined, no-any-return]

    def score(self, problem: Problem, response: str) -> Any:
        return self.judge.score(problem.data["answer"], {"prompt": problem.prompt}, response)


def judged(url: str, **reward: Any) -> Scorer:
    cfg = TaskConfig(name=f"{__name__}:Judged", options={"url": f"{url}/v1", "model": "m", "retries": 0, "cache": "none"})
    return Scorer(make_task(cfg, 7), cfg, 7, RewardConfig(workers=1, **reward), VOCABULARY)


def test_a_judge_is_asked_once_for_equal_answers_and_a_dead_one_is_named() -> None:
    rollouts = [one_token_rollout(0, sample, f"said {sample % 2}") for sample in range(4)]
    problems = {0: Problem("p", {"answer": "4"})}
    with serving(lambda body, number: said(f"Score: {10 * ('said 1' in body['messages'][0]['content'])}")) as server:
        scorer = judged(server.url)
        assert scorer.finish(0, rollouts, problems).rewards == [0.0, 1.0, 0.0, 1.0]
        scorer.close()
    assert len(server.bodies) == 2
    scorer = judged(server.url)
    scores = scorer.finish(0, rollouts, problems)
    assert (scores.rewards, scores.metrics["reward/failures"]) == ([0.0] * 4, 4)
    scorer.close()
    scorer = judged(server.url, on_failure="stop")
    with pytest.raises(
        VerifierError, match=rf"failed: RemoteError: {server.url}/v1/chat/completions cannot be reached.*on_failure=stop"
    ):
        scorer.finish(0, rollouts, problems)
    scorer.close()


@pytest.mark.slow
def test_a_resumed_run_reports_the_same_parts_and_costs(tmp_path: Path) -> None:
    """One step ahead: the step after the checkpoint is read back from its record, not scored again."""
    task_of(tmp_path)
    settings = (
        f"task.name={tmp_path / 'my task.py'}:Parts", "parallel.tensor=1", "batch.prompts_per_step=4", "batch.samples_per_prompt=4",
        "rollout.engine=local", "rollout.max_new_tokens=8", "rollout.max_staleness=1", "reward.overlong_buffer=6", "reward.workers=1",
        "trainer.tensorboard=false", "trainer.export_hf=false",
    )  # fmt: skip
    folder = tmp_path / "run"
    first = megatron_entropic("train", "quickstart", *settings, f"run.dir={folder}", "trainer.steps=3", "checkpoint.every=2")
    assert first.code == 0, first.output
    whole = read_metrics(folder / "metrics.jsonl")
    shutil.rmtree(folder / "checkpoints" / "step-000003")  # as if it had been killed in its third step
    (folder / "checkpoints" / "latest").write_text("step-000002\n")
    resumed = megatron_entropic("train", str(folder), "--resume")
    assert resumed.code == 0, resumed.output
    again = read_metrics(folder / "metrics.jsonl")
    names = ("reward/mean", "reward/overlong", "reward/part/right", "reward/part/big", "reward/failures", "policy/entropy")
    assert [[line[name] for name in names] for line in again] == [[line[name] for name in names] for line in whole]
    assert all(line["reward/overlong"] < 0 for line in whole)
    assert any(0 < line["reward/part/big"] < 1 for line in whole)
