"""The pipeline with engines that tests hold by the hand: what runs when, what surfaces where, and how it ends."""

import threading
from collections.abc import Sequence

import pytest

from megatron_entropic.rollout.pipeline import GenerationPipeline, steps_from_version
from megatron_entropic.rollout.types import Finished, NamedWeights, Prompt, Rollout, RolloutError
from tests.rollout.tokens import one_token_rollout


class HeldEngine:
    """Generates one rollout a prompt once `release` is set; `close` makes a generation under way fail, as killed servers do."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.began_one = threading.Semaphore(0)
        self.release = threading.Event()
        self.closed = threading.Event()

    def start(self) -> None: ...

    def generate(self, prompts: Sequence[Prompt], samples_per_prompt: int, finished: Finished | None = None) -> list[Rollout]:
        self.began.append(prompts[0].index)
        self.began_one.release()
        assert self.release.wait(20)
        if self.closed.is_set() or prompts[0].text == "bad":
            raise RolloutError(f"engine failed at prompt {prompts[0].index}")
        asked = [(prompt, sample) for prompt in prompts for sample in range(samples_per_prompt)]
        return [one_token_rollout(prompt.index, sample) for prompt, sample in asked]

    def sync_weights(self, weights: NamedWeights, version: int) -> None: ...

    def close(self) -> None:
        self.closed.set()
        self.release.set()


def prompts(step: int, text: str = "") -> list[Prompt]:
    return [Prompt(step, text, (1, 2))]


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 5])
@pytest.mark.parametrize("steps", [0, 1, 3, 7])
def test_every_step_comes_once_from_the_version_of_the_rule(max_staleness: int, steps: int) -> None:
    requests = [
        (k, version) for version in range(steps + 1) for k in steps_from_version(version, max_staleness=max_staleness, steps=steps)
    ]
    assert requests == [(k, max(0, k - max_staleness)) for k in range(steps)]


def test_in_the_background_generation_runs_while_the_caller_does_other_work() -> None:
    engine = HeldEngine()
    pipeline = GenerationPipeline(engine, 2, background=True)
    try:
        for step in range(3):
            pipeline.request(step, prompts(step))
        assert engine.began_one.acquire(timeout=20)  # nobody waits for a result
        assert engine.began == [0]  # one generation at a time, in order
        engine.release.set()
        assert [[rollout.prompt_index for rollout in pipeline.take(step)] for step in range(3)] == [[0, 0], [1, 1], [2, 2]]
        assert engine.began == [0, 1, 2]
        assert pipeline.requested == []
    finally:
        pipeline.close()


def test_in_the_foreground_generation_waits_until_its_result_is_taken() -> None:
    engine = HeldEngine()
    engine.release.set()
    pipeline = GenerationPipeline(engine, 1, background=False)
    pipeline.request(0, prompts(0))
    pipeline.request(1, prompts(1))
    assert engine.began == []
    assert [rollout.prompt_index for rollout in pipeline.take(0)] == [0]
    assert (engine.began, pipeline.requested) == ([0], [1])
    pipeline.close()
    assert engine.closed.is_set()


@pytest.mark.parametrize("background", [False, True])
def test_an_error_surfaces_where_the_step_is_taken_and_a_step_is_taken_once(background: bool) -> None:
    engine = HeldEngine()
    engine.release.set()
    pipeline = GenerationPipeline(engine, 1, background=background)
    try:
        pipeline.request(0, prompts(0))
        pipeline.request(1, prompts(1, "bad"))
        assert len(pipeline.take(0)) == 1
        with pytest.raises(RolloutError, match=r"step 0 were not requested, or were taken before; at hand: \[1\]"):
            pipeline.take(0)
        with pytest.raises(RolloutError, match="engine failed at prompt 1"):
            pipeline.take(1)
    finally:
        pipeline.close()


def test_close_ends_a_generation_under_way_and_drops_the_ones_behind_it() -> None:
    engine = HeldEngine()
    pipeline = GenerationPipeline(engine, 1, background=True)
    for step in range(3):
        pipeline.request(step, prompts(step))
    assert engine.began_one.acquire(timeout=20)
    pipeline.close()
    pipeline.close()
    assert engine.began == [0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("generation")]
