"""What is trouble in a step: by kind a function of what is seen in it, and how many steps in a row make an alert of it.

The one place that judges a run's metrics while it trains. A message is one line that says what is wrong and what to do.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megatron_entropic.config import AlertsConfig, Config
from megatron_entropic.control.handoff import Phase
from megatron_entropic.control.kinds import kind_of
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.rollout.logprob_gap import likely_causes, warn_bounds

FAR = 0.5
"""Of the target: an entropy further from it at the start is remarked on."""
_SMOOTHING = 0.9
"""Weight of the past in the smoothed reward."""
_SETTLED = 10
"""Steps after which the smoothed reward counts as the best so far."""
_GIB = 2**30


class RewardTrend:
    """The smoothed mean reward of the steps, and the best it has been."""

    def __init__(self) -> None:
        self.steps = 0
        self.smoothed = 0.0
        self.best = 0.0

    def add(self, reward: float | int | None) -> None:
        """Takes a step's mean reward."""
        if reward is None or reward != reward:
            return
        self.steps += 1
        past = min(_SMOOTHING, 1 - 1 / self.steps)
        self.smoothed = past * self.smoothed + (1 - past) * reward
        if self.steps >= _SETTLED:
            self.best = max(self.best, self.smoothed)


@dataclass(frozen=True)
class Seen:
    """A step at its end. `largest`: of the entropy that the run steers by, nats; `free`: bytes of its disk, None when not known."""

    cfg: Config
    step: int
    metrics: Mapping[str, MetricValue]
    largest: float
    reward: RewardTrend
    free: int | None = None


@dataclass(frozen=True)
class Condition:
    """`of` gives the message when there is this trouble. It is an alert after `patience` steps in a row, never for 0.

    remarked: whether it is also warned of once a run, when it is first seen.
    """

    of: Callable[[Seen], str | None]
    patience: Callable[[AlertsConfig], int] = lambda alerts: 0
    remarked: bool = False


def _no_signal(seen: Seen) -> str | None:
    if seen.metrics.get("control/active_fraction") != 0:
        return None
    if seen.metrics.get("reward/solve_none") == 1:
        why = "no response to any prompt was right: take easier problems, a better model, more samples, or longer responses"
    elif seen.metrics.get("reward/solve_all") == 1:
        why = "every response to every prompt was right: there is nothing left to learn from these problems"
    else:
        why = "the rewards of each prompt's samples were all equal: take more samples, or a task that tells answers apart"
    return f"no reward signal in this step, its update taught nothing about the task: {why}"


def _all_truncated(seen: Seen) -> str | None:
    if seen.metrics.get("response/truncated") != 1:
        return None
    return (
        f"every response was cut off at rollout.max_new_tokens={seen.cfg.rollout.max_new_tokens}; raise it, "
        "or look at the prompts: does the model know when to stop (task.chat_template)?"
    )


def _logprob_gap(seen: Seen) -> str | None:
    model, rollout = seen.cfg.model, seen.cfg.rollout
    bounds = warn_bounds(model, rollout, seen.step)
    largest, mean = seen.metrics.get("rollout/logprob_gap"), seen.metrics.get("rollout/logprob_gap_mean")
    if not bounds or largest is None or mean is None or not bounds.exceeded(largest, mean):
        return None
    return (
        f"the sampler's log-probs are {mean:.2g} nats from the trainer's in the mean and {largest:.2g} at most, where up to "
        f"{bounds} would be usual; likely causes: {likely_causes(model, rollout, seen.step)}"
    )


def _far_from_target(seen: Seen) -> str | None:
    control = seen.cfg.control
    target, entropy = seen.metrics.get("control/target_entropy"), seen.metrics.get(f"policy/{control.steer_by}")
    if seen.step or not kind_of(control).steered or target is None or entropy is None:
        return None
    if not abs(entropy - target) > FAR * max(target, entropy):
        return None
    return (
        f"the entropy starts at {entropy:.3g} nats, the target is {target:.3g}: a long way, which may cost "
        f"skill; to hold it near where it is set control.target_entropy={entropy:.2g}, or control.target_unit=initial with "
        "control.target_entropy=1.0"
    )


def _impossible_target(seen: Seen) -> str | None:
    target = seen.metrics.get("control/target_entropy")
    if not kind_of(seen.cfg.control).steered or target is None or 0 <= target <= seen.largest:
        return None
    return f"no policy has the target of {target:.3g} nats: entropies lie between 0 and {seen.largest:.3g} here"


def _authority_lost(seen: Seen) -> str | None:
    if not kind_of(seen.cfg.control).steered or seen.metrics.get("control/phase") != Phase.EXHAUSTED.number:
        return None
    target = seen.metrics.get("control/target_entropy")
    named = "the target" if target is None else f"the target of {target:.3g} nats"
    return (
        f"the controller has been at the end of its means for {seen.cfg.alerts.authority_steps} steps, {named} is out "
        "of reach: take one nearer to the entropy there is, or raise alpha_limit or handoff_coefficient_max of control"
    )


def _entropy_out_of_band(seen: Seen) -> str | None:
    """The bands of the settings; with a soft setpoint around that, on the way to the target."""
    alerts, control = seen.cfg.alerts, seen.cfg.control
    steered_by = f"policy/{control.steer_by}"
    entropy = seen.metrics.get(steered_by)
    if entropy is None:
        entropy = seen.metrics.get("policy/entropy")
    if entropy is None:
        return None
    if alerts.entropy_low is not None and entropy < alerts.entropy_low:
        return f"the entropy of {entropy:.3g} nats is below alerts.entropy_low={alerts.entropy_low:g}"
    if alerts.entropy_high is not None and entropy > alerts.entropy_high:
        return f"the entropy of {entropy:.3g} nats is above alerts.entropy_high={alerts.entropy_high:g}"
    setpoint = seen.metrics.get("control/setpoint")
    wanted = seen.metrics.get("control/target_entropy") if setpoint is None else setpoint
    if not alerts.entropy_band or not kind_of(control).targeted or wanted is None or not wanted > 0:
        return None
    if abs(entropy - wanted) <= alerts.entropy_band * wanted:
        return None
    return (
        f"the entropy of {entropy:.3g} nats is more than alerts.entropy_band={alerts.entropy_band:g} of the {wanted:.3g} wanted away "
        "from that: control/phase and control/alpha in metrics.jsonl say what the controller does about it"
    )


def _reward_collapse(seen: Seen) -> str | None:
    trend = seen.reward
    if not trend.best > 0 or trend.smoothed >= (1 - seen.cfg.alerts.reward_drop) * trend.best:
        return None
    return (
        f"the reward has fallen to {trend.smoothed:.3g}, from {trend.best:.3g} at its best (both smoothed): look at the responses; "
        "resume from an earlier checkpoint with a lower optimizer.lr, or another target"
    )


def _disk_nearly_full(seen: Seen) -> str | None:
    least = seen.cfg.alerts.disk_free_gb
    if seen.free is None or seen.free >= least * _GIB:
        return None
    return (
        f"the disk of {seen.cfg.run_dir} has {seen.free / _GIB:.2g} GiB free, fewer than alerts.disk_free_gb={least:g}: a full disk "
        "ends the run; make room, or keep fewer checkpoints (checkpoint.keep)"
    )


CONDITIONS: Mapping[str, Condition] = {
    "no_signal": Condition(_no_signal, lambda alerts: alerts.no_signal_steps, remarked=True),
    "all_truncated": Condition(_all_truncated, remarked=True),
    "logprob_gap": Condition(_logprob_gap, lambda alerts: alerts.logprob_gap_steps, remarked=True),
    "far_from_target": Condition(_far_from_target, remarked=True),
    "impossible_target": Condition(_impossible_target, remarked=True),
    "authority_lost": Condition(_authority_lost, lambda alerts: alerts.authority_steps),
    "entropy_out_of_band": Condition(_entropy_out_of_band, lambda alerts: alerts.entropy_steps),
    "reward_collapse": Condition(_reward_collapse, lambda alerts: alerts.reward_steps),
    "disk_nearly_full": Condition(_disk_nearly_full, lambda alerts: 1),
}
"""What a step is looked at for, in this order."""


def free_bytes(cfg: Config) -> int | None:
    """Free bytes of the run's disk; None when nobody wants to know, or it does not say."""
    try:
        return shutil.disk_usage(cfg.run_dir).free if cfg.alerts.disk_free_gb else None
    except OSError:  # what is wrong with the folder is said by whoever writes there
        return None
