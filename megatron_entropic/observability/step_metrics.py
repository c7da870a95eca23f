"""One line of metrics.jsonl from what a step produced. Field meanings: observability/metrics.py."""

import math
from collections.abc import Mapping, Sequence

from megatron_entropic.config import Config
from megatron_entropic.control import Controller
from megatron_entropic.control.kinds import kind_of, measures_response
from megatron_entropic.observability.metrics import METRIC_FIELDS, MetricValue
from megatron_entropic.policy.update_stats import UpdateStats
from megatron_entropic.rollout.types import Rollout


def step_metrics(
    cfg: Config,
    version: int,
    rollouts: Sequence[Rollout],
    rewards: Sequence[float],
    updates: Sequence[UpdateStats],
    controller: Controller,
    times: Mapping[str, float],
) -> dict[str, MetricValue]:
    """The metrics of one step, in which the policy went from weight version `version` to `version + 1`.

    Token means over several updates weigh each by its response tokens; coefficients are those of the last update. Optional
    fields that this kind of control does not have are None. `times` may hold other metrics too: of scoring, of validation.
    """
    tokens = sum(update.response_tokens for update in updates)
    coefficients = updates[-1].coefficients
    control, kind = cfg.control, kind_of(cfg.control)

    def token_mean(field: str) -> float:
        return math.fsum(getattr(update, field) * update.response_tokens for update in updates) / tokens

    def measured(field: str) -> float:
        return math.fsum(getattr(update.measurement, field) * update.response_tokens for update in updates) / tokens

    groups = [rewards[start : start + cfg.batch.samples_per_prompt] for start in range(0, len(rewards), cfg.batch.samples_per_prompt)]
    all_tokens = sum(len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in rollouts)
    unknown = {name: None for name, field in METRIC_FIELDS.items() if field.optional}
    return unknown | {
        "policy/entropy": token_mean("entropy"),
        "policy/clamped_entropy": token_mean("clamped_entropy") if kind.clamped_entropy(control) else None,
        "policy/high_prob_fraction": token_mean("high_prob_fraction"),
        "policy/clip_fraction": token_mean("clip_fraction"),
        "policy/kl_old": token_mean("kl_old"),
        "control/alpha": coefficients.alpha if kind.steered else None,
        "control/coefficient": coefficients.bonus + coefficients.entropy_bonus if kind.adds_bonus(control) else None,
        "control/phase": coefficients.phase.number if kind.steered else None,
        "control/active_fraction": measured("active_fraction"),
        "control/authority": measured("authority"),
        "control/pressure": measured("pressure"),
        "control/bonus_authority": measured("bonus_authority"),
        **(_response(updates) if measures_response(control) else {}),
        **{f"control/{name}": value for name, value in controller.report().items()},
        "control/actuated_fraction": token_mean("actuated_fraction"),
        "control/selected_fraction": token_mean("selected_fraction") if kind.selection else None,
        "reward/mean": sum(rewards) / len(rewards),
        "reward/solve_all": sum(min(group) == 1.0 for group in groups) / len(groups),
        "reward/solve_none": sum(max(group) <= 0.0 for group in groups) / len(groups),
        "loss/policy": token_mean("policy_loss"),
        "loss/total": token_mean("total_loss"),
        "grad_norm": sum(update.grad_norm for update in updates) / len(updates),
        "optimizer/lr": updates[-1].learning_rate,
        "optimizer/skipped_updates": sum(not update.applied for update in updates),
        "response/length_mean": sum(len(rollout.response_ids) for rollout in rollouts) / len(rollouts),
        "response/truncated": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        "rollout/staleness_max": version - min(rollout.first_version for rollout in rollouts),
        "rollout/logprob_gap": max(update.logprob_gap_max for update in updates),
        "rollout/logprob_gap_mean": token_mean("logprob_gap_mean"),
        **times,
        "perf/tokens_per_s": all_tokens / (times["time/step_s"] - times.get("time/validation_s", 0.0)),
    }


def _response(updates: Sequence[UpdateStats]) -> dict[str, MetricValue]:
    """Change of entropy by the step's updates, on the same tokens. NaN when none was measured, as after a skipped update."""
    changes = [update.measurement.response for update in updates if math.isfinite(update.measurement.response)]
    return {
        "control/response": math.fsum(changes) / len(changes) if changes else math.nan,
        "control/response_tokens": sum(update.measurement.response_tokens for update in updates),
        "time/response_s": math.fsum(update.response_seconds for update in updates),
    }
