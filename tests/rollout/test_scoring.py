"""Rewards of a step: in the rollouts' order whatever the timing, failures named and scored by policy, limits counted."""

import logging
import signal

import pytest

from megatron_entropic.config import RewardConfig, TaskConfig
from megatron_entropic.rollout.prompt_encoder import load_tokenizer
from megatron_entropic.rollout.scoring import Scorer
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.rollout.vocabulary import Vocabulary
from megatron_entropic.system.stop_signal import StoppedAtOnce, _stop_now
from megatron_entropic.tasks import FACTORIES, Problem, make_task
from megatron_entropic.tasks.verification import VerifierError
from tests.rollout.tokens import one_token_rollout
from tests.tasks.awkward_verifiers import Awkward
from tests.tiny_models import TINY_DECOMPOSE

PROBLEMS = {index: Problem("p", {"wanted": str(index), "line": 10 + index}) for index in range(4)}
VOCABULARY = Vocabulary(load_tokenizer(TINY_DECOMPOSE))
FAST = {"cpu_limit_s": 0.5, "workers": 2}


@pytest.fixture
def awkward(monkeypatch: pytest.MonkeyPatch) -> TaskConfig:
    monkeypatch.setitem(FACTORIES, "math", "tests.tasks.awkward_verifiers:make_awkward")
    return TaskConfig(name="math", options={"prompt": "p", "path": "problems.jsonl"})


def scorer_of(cfg: TaskConfig, **reward: object) -> Scorer:
    return Scorer(make_task(cfg, 7), cfg, 7, RewardConfig(**{**FAST, **reward}), VOCABULARY)  # type: ignore[arg-type]


def rollouts(*texts: str) -> list[Rollout]:
    """Texts by prompt, then sample: two samples of each prompt."""
    return [one_token_rollout(i // 2, i % 2, text) for i, text in enumerate(texts)]


def test_rewards_come_in_order_and_what_went_wrong_is_counted_and_named(awkward: TaskConfig, caplog: pytest.LogCaptureFixture) -> None:
    scorer = scorer_of(awkward)
    asked = rollouts("echo 0", "swallow", "echo 0", "echo 1", "raise a", "raise a", "crash", "return half")
    try:
        with caplog.at_level(logging.WARNING):
            scorer.begin(asked[6:], PROBLEMS)  # as prompts finish: in any order, some not at all
            scorer.begin(asked[:2], PROBLEMS)
            scores = scorer.finish(3, asked, PROBLEMS)
            again = scorer.finish(4, rollouts("echo 1", "echo 0"), PROBLEMS)
    finally:
        scorer.close()
    assert scores.rewards == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5]
    assert (scores.metrics["reward/timeouts"], scores.metrics["reward/failures"]) == (1, 3)
    assert 0 < scores.metrics["time/score_s"] < 60
    assert again.rewards == [0.0, 1.0]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3  # equal failures once
    assert "step 4, prompt 0 (problems.jsonl, line 10), sample 1: the verifier of task math was stopped, it took" in messages[0]
    assert "prompt 2 (problems.jsonl, line 12), sample 0: the verifier of task math failed: KeyError" in messages[1]
    assert messages[2].endswith("ended by SIGSEGV; the answer ends in 'crash'; scored 0")


def test_a_failure_ends_the_run_where_that_is_asked_for_but_a_limit_does_not(awkward: TaskConfig) -> None:
    scorer = scorer_of(awkward, on_failure="stop")
    try:
        assert scorer.finish(0, rollouts("swallow", "echo 0"), PROBLEMS).rewards == [0.0, 1.0]
        with pytest.raises(VerifierError, match=r"step 2, prompt 0 .*line 10.* sample 1.*returned 2.0.*\(reward.on_failure=stop\)"):
            scorer.finish(1, rollouts("echo 0", "return two"), PROBLEMS)
    finally:
        scorer.close()


def test_a_task_of_microseconds_needs_no_process() -> None:
    cfg = TaskConfig(name="decompose")
    task = make_task(cfg, 0)
    scorer = Scorer(task, cfg, 0, RewardConfig(), VOCABULARY)
    assert scorer._pool is None
    problem = task.problem(0)
    scores = scorer.finish(0, rollouts(f"{problem.data['total']}+0", "x"), {0: problem})
    assert (scores.rewards, scores.metrics["reward/timeouts"]) == ([1.0, 0.0], 0)


def test_a_verifier_that_is_called_directly_may_fail_too(awkward: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Awkward, "inline", True, raising=False)
    scorer = scorer_of(awkward)
    assert scorer._pool is None
    scores = scorer.finish(0, rollouts("raise x", "return nan", "return half", "print"), PROBLEMS)
    assert (scores.rewards, scores.metrics["reward/failures"]) == ([0.0, 0.0, 0.5, 1.0], 2)


def test_what_a_directly_called_verifier_raises_is_not_taken_for_a_signal_nor_a_signal_for_it(
    awkward: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Awkward, "inline", True, raising=False)
    scorer = scorer_of(awkward)
    before = signal.signal(signal.SIGINT, _stop_now)  # as in a rank
    others = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}
    try:
        scores = scorer.finish(0, rollouts("exit 0", "interrupt", "cancel", "return half"), PROBLEMS)
        assert (scores.rewards, scores.metrics["reward/failures"]) == ([0.0, 0.0, 0.0, 0.5], 3)
        with pytest.raises(StoppedAtOnce):
            scorer.finish(0, rollouts("signal 2", "return half"), PROBLEMS)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as in an evaluation
        with pytest.raises(KeyboardInterrupt):
            scorer.finish(0, rollouts("signal 2", "return half"), PROBLEMS)
    finally:
        for signum, handler in {**others, signal.SIGINT: before}.items():
            signal.signal(signum, handler)


def test_the_wall_clock_limit_is_not_the_tighter_one() -> None:
    with pytest.raises(ValueError, match=r"reward\.wall_limit_s=1 is below reward.cpu_limit_s=3"):
        RewardConfig(wall_limit_s=1.0)
