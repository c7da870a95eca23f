"""`rollout.max_staleness` on real vLLM servers: generation and update at one time, and a server that dies meanwhile."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic import trainer
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.distributed.rank_zero import RankZeroError
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.recording import read_rollouts, recorded_steps
from megatron_entropic.rollout.types import Finished, Prompt, Rollout, RolloutError
from megatron_entropic.rollout.vllm.fleet import VLLMFleet
from tests.rollout.vllm.vllm_world import becomes_true, group_members
from tests.run_ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.distributed]

STEPS = 4
SETTINGS = (
    "batch.prompts_per_step=32",
    "optimizer.lr=1e-3",
    "rollout.servers=1",
    "rollout.max_new_tokens=16",
    "rollout.max_staleness=1",
    f"trainer.steps={STEPS}",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
)
Span = tuple[float, float]


class Watched:
    """Replaces a function by itself with the span of every call noted, in seconds of the monotonic clock."""

    def __init__(self, function: Callable[..., Any], before: Callable[[int], object] = lambda call: None) -> None:
        self.function = function
        self.before = before
        self.spans: list[Span] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.before(len(self.spans))
        begin = time.monotonic()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.spans.append((begin, time.monotonic()))


def watch_generation(fleets: list[VLLMFleet], before: Callable[[int], object] = lambda call: None) -> Watched:
    """Notes every generation of this process's fleet, and the fleet itself."""
    watched = Watched(VLLMFleet.generate, before)

    def generate(
        self: VLLMFleet, prompts: Sequence[Prompt], samples_per_prompt: int, finished: Finished | None = None
    ) -> list[Rollout]:
        if not fleets:
            fleets.append(self)
        return watched(self, prompts, samples_per_prompt, finished)  # type: ignore[no-any-return]

    VLLMFleet.generate = generate  # type: ignore[method-assign]
    return watched


def train_and_watch(cfg: Config) -> tuple[list[Span], list[Span], list[int]]:
    """(generations, updates, process groups of the servers) of this rank."""
    fleets: list[VLLMFleet] = []
    generations = watch_generation(fleets)
    updates = Watched(lambda *args: list(update(*args)))
    update, trainer.update_policy = trainer.update_policy, updates
    trainer.train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))
    return generations.spans, updates.spans, [server.pid or 0 for fleet in fleets for server in fleet.servers]


def test_the_next_batch_is_generated_during_the_update(tmp_path: Path) -> None:
    cfg = load_config("quickstart", [*SETTINGS, f"run.dir={tmp_path}"])
    (generations, updates, groups), (no_generations, _, _) = run_ranks(train_and_watch, 2, cfg, timeout=400)
    assert len(generations) == len(updates) == STEPS
    assert no_generations == []
    for step in range(STEPS - 1):
        begin, end = generations[step + 1]
        assert begin < updates[step][1], f"generation of step {step + 1} began after update {step} had ended"
        assert end > updates[step][0], f"generation of step {step + 1} had ended before update {step} began"
        assert end < updates[step + 1][0]
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["rollout/staleness_max"] for line in metrics] == [0, 1, 1, 1]
    assert metrics[0]["rollout/logprob_gap"] < 1e-3
    assert recorded_steps(tmp_path / "rollouts") == list(range(STEPS))
    for step in range(STEPS):
        records = read_rollouts(tmp_path / "rollouts", step)
        assert {record.rollout.first_version for record in records} == {max(0, step - 1)}
        assert {record.rollout.last_version for record in records} == {max(0, step - 1)}
    assert len(groups) == 1
    assert becomes_true(lambda: not group_members(groups[0]), 10.0), "the server is still there"


def train_until_the_server_dies(cfg: Config) -> tuple[str, str, float, list[int]]:
    """Kills the server as the generation of step 2 begins; (kind of error, its text, seconds from the kill to the end, groups)."""
    fleets: list[VLLMFleet] = []
    killed: list[float] = []

    def kill_at_step_2(call: int) -> None:
        if call == 2:
            killed.append(time.monotonic())
            threading.Timer(0.05, os.kill, (fleets[0].servers[0].pid, signal.SIGKILL)).start()

    watch_generation(fleets, kill_at_step_2)
    try:
        trainer.train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))
    except (RolloutError, RankZeroError) as error:
        took = time.monotonic() - killed[0] if killed else 0.0
        return type(error).__name__, str(error), took, [server.pid or 0 for fleet in fleets for server in fleet.servers]
    raise AssertionError("the run did not notice that its server was killed")


def test_a_server_killed_while_it_generates_in_the_background_ends_the_run(tmp_path: Path) -> None:
    cfg = load_config("quickstart", [*SETTINGS, f"run.dir={tmp_path}"])
    (kind, message, took, groups), (other_kind, other_message, _, _) = run_ranks(train_until_the_server_dies, 2, cfg, timeout=400)
    assert (kind, other_kind) == ("ServerLostError", "RankZeroError")
    assert f"pid {groups[0]}, exit code -9) did not answer a request for prompt" in message
    assert message.splitlines()[0] in other_message
    assert took < 60
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1  # step 1 was updated, but not synced
    assert recorded_steps(tmp_path / "rollouts") == [0, 1]
    assert becomes_true(lambda: not group_members(groups[0]), 10.0), "the server is still there"
