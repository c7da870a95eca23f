"""The loop: generate, score, update under entropy control, sync. The algorithm, and nothing else."""

from collections.abc import Iterator, Sequence

import torch

from megatron_entropic.algorithms import make_advantage
from megatron_entropic.checkpoint.checkpointer import Checkpointer
from megatron_entropic.config import Config
from megatron_entropic.control import Controller, make_controller
from megatron_entropic.control.kinds import measures_first
from megatron_entropic.control.target_file import TargetFile
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.rank_zero import RankZeroError
from megatron_entropic.evaluation.validation import Validation
from megatron_entropic.observability.run_output import RunOutput
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.dealing import deal
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.update_stats import UpdateStats, gap_of
from megatron_entropic.rollout.logprob_gap import likely_causes, stop_bounds
from megatron_entropic.rollout.source import RolloutSource
from megatron_entropic.rollout.types import Rollout, RolloutError


def train(cfg: Config, parallel: Parallel, *, allow_fallback: bool = False, allow_change: bool = False) -> None:
    """Runs `cfg` to its end, from its run folder's latest checkpoint if there is one; collective over all ranks.

    When that one is damaged and `allow_fallback`, from the newest intact one; with other settings of the method than it was saved
    with only when `allow_change`. Raises StopRequested, with all that was trained
    saved, when a signal asked for it.
    """
    with RolloutSource(cfg, parallel) as source, RunOutput(cfg, parallel) as output:
        checkpointer = Checkpointer(
            cfg,
            parallel,
            allow_fallback=allow_fallback,
            allow_change=allow_change,
            recorded=source.recorded,
            data_state=source.data_state,
        )
        policy = Policy(cfg, parallel, blank=checkpointer.find())
        controller = make_controller(cfg)
        first_step = checkpointer.restore(policy, controller)
        target_file = TargetFile(cfg.run_dir, rank=parallel.rank)
        output.start(first_step, checkpointer.trackers, policy, source)
        source.start(policy, first_step, checkpointer.data)
        validation = Validation(cfg, parallel, source)
        left_out = validation.start(first_step)
        output.complete(left_out)
        checkpointer.complete(first_step, left_out)
        source.request(version=first_step)
        for step in range(first_step, cfg.trainer.steps):
            with output.time("rollout"), checkpointer.saving_if_stopped(step, policy, controller):
                rollouts, rewards = source.collect(step)
            with output.time("update"):
                batch = deal(cfg.control, cfg.batch, parallel, make_samples(cfg, rollouts, rewards))
                updates = list(update_policy(cfg, policy, controller, batch, target_file.poll(controller)))
            with output.time("sync"):
                source.sync_weights(policy, version=step + 1)
            validated = validation.run(step + 1)
            source.request(version=step + 1)
            output.record(step, rollouts, rewards, updates, controller, source.score_metrics(step) | validated)
            source.record_tokens(step, rollouts, updates)
            check_sampler(cfg, parallel, step, updates)
            with output.time("checkpoint"):
                checkpointer.save(step + 1, policy, controller, validated)
        output.export(policy)


def check_sampler(cfg: Config, parallel: Parallel, step: int, updates: Sequence[UpdateStats]) -> None:
    """Ends the run, on every rank, when the sampler's log-probs are too far from the trainer's (`rollout.max_logprob_gap`)."""
    largest, mean = gap_of(updates)
    bounds = stop_bounds(cfg.model, cfg.rollout, step)
    if bounds and bounds.exceeded(largest, mean):
        message = (
            f"step {step + 1}: |trainer - sampler| log-prob is {mean:.3g} nats in the mean and {largest:.3g} at most, above "
            f"rollout.max_logprob_gap={cfg.rollout.max_logprob_gap} ({bounds}): the engine does not sample from the trainer's policy. "
            f"Likely causes: {likely_causes(cfg.model, cfg.rollout, step)}. A higher limit, or 0, lets the run continue"
        )
        raise RolloutError(message) if parallel.rank == 0 else RankZeroError(message)


def make_samples(cfg: Config, rollouts: Sequence[Rollout], rewards: Sequence[float]) -> list[Sample]:
    """Rollouts with their advantages, in the order they came (by prompt, then sample)."""
    samples = cfg.batch.samples_per_prompt
    rewards_PS = torch.tensor(rewards, dtype=torch.float32).view(len(rewards) // samples, samples)
    advantages_PS = make_advantage(cfg.algorithm.advantage)(rewards_PS)
    return [
        Sample(rollout.prompt_ids, rollout.response_ids, rollout.log_probs, advantage)
        for rollout, advantage in zip(rollouts, advantages_PS.flatten().tolist(), strict=True)
    ]


def update_policy(
    cfg: Config, policy: Policy, controller: Controller, batch: Batch, requested_target: float | None = None
) -> Iterator[UpdateStats]:
    """The step's optimizer updates, each with the coefficients its controller has by then.

    The controller always sees the entropy of the policy about to be updated: with several updates per batch, with stale
    rollouts or with `control.fresh_measurement` that of the log-prob pass before the first, and of the previous mini-batch
    before the others; else that of the previous step. A `requested_target` (of rank 0) comes with the first measurement.
    """
    prepared = measures_first(cfg.control, mini_batches=cfg.batch.mini_batches, max_staleness=cfg.rollout.max_staleness)
    if prepared:
        controller.step(policy.prepare(batch, requested_target))
        requested_target = None
    mini_batches = batch.mini_batches(cfg.batch.mini_batches)
    for number, mini_batch in enumerate(mini_batches, start=1):
        stats = policy.update(mini_batch, controller.coefficients(), requested_target)
        yield stats
        if not prepared or number < len(mini_batches):
            controller.step(stats.measurement)
