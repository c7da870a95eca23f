"""Watches a run for steps that train nothing and targets that are out of reach: says so once, and notes it for the report."""

import logging
from collections.abc import Iterator, Mapping

from megatron_entropic.config import Config
from megatron_entropic.control.handoff import Phase
from megatron_entropic.control.kinds import kind_of
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.observability.run_warnings import RunWarning, append_warning, read_warnings
from megatron_entropic.rollout.logprob_gap import likely_causes, warn_bounds

logger = logging.getLogger(__name__)

FAR = 0.5
"""Of the target: an entropy further from it at the start is remarked on."""
EXHAUSTED_STEPS = 10
"""Steps in a row in which the controller is at the end of its means before that is remarked on."""


class Watch:
    """A Tracker (trackers.py) that reads each step's metrics and warns of each kind of trouble once a run, resumed or not.

    `largest_entropy`: the largest value (nats) of the entropy that the run steers by.
    """

    def __init__(self, cfg: Config, largest_entropy: float) -> None:
        self._cfg = cfg
        self._largest = largest_entropy
        self._exhausted = 0
        self._said = {warning.kind for warning in read_warnings(cfg.run_dir)}

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Looks at the metrics of `step`."""
        for kind, message in self._warnings_of(step, metrics):
            if kind not in self._said:
                self._said.add(kind)
                append_warning(self._cfg.run_dir, RunWarning(kind, step, message))
                logger.warning("step %d: %s", step + 1, message)

    def close(self) -> None:
        """There is nothing to release."""

    def _warnings_of(self, step: int, metrics: Mapping[str, MetricValue]) -> Iterator[tuple[str, str]]:
        if metrics.get("control/active_fraction") == 0:
            yield "no_signal", self._no_signal(metrics)
        if metrics.get("response/truncated") == 1:
            yield (
                "all_truncated",
                f"every response was cut off at rollout.max_new_tokens={self._cfg.rollout.max_new_tokens}; raise it, "
                "or look at the prompts: does the model know when to stop (task.chat_template)?",
            )
        bounds = warn_bounds(self._cfg.model, self._cfg.rollout, step)
        largest, mean = metrics.get("rollout/logprob_gap"), metrics.get("rollout/logprob_gap_mean")
        if bounds and largest is not None and mean is not None and bounds.exceeded(largest, mean):
            yield (
                "logprob_gap",
                f"the sampler's log-probs are {mean:.2g} nats from the trainer's in the mean and {largest:.2g} at most, where up to "
                f"{bounds} would be usual; likely causes: {likely_causes(self._cfg.model, self._cfg.rollout, step)}",
            )
        if kind_of(self._cfg.control).steered:
            yield from self._target_warnings(step, metrics)

    def _no_signal(self, metrics: Mapping[str, MetricValue]) -> str:
        if metrics.get("reward/solve_none") == 1:
            why = "no response to any prompt was right: take easier problems, a better model, more samples, or longer responses"
        elif metrics.get("reward/solve_all") == 1:
            why = "every response to every prompt was right: there is nothing left to learn from these problems"
        else:
            why = "the rewards of each prompt's samples were all equal: take more samples, or a task that tells answers apart"
        return f"no reward signal in this step, its update taught nothing about the task: {why}"

    def _target_warnings(self, step: int, metrics: Mapping[str, MetricValue]) -> Iterator[tuple[str, str]]:
        control = self._cfg.control
        target, entropy = metrics.get("control/target_entropy"), metrics.get(f"policy/{control.steer_by}")
        if step == 0 and target is not None and entropy is not None and abs(entropy - target) > FAR * max(target, entropy):
            yield (
                "far_from_target",
                f"the entropy starts at {entropy:.3g} nats, the target is {target:.3g}: a long way, which may cost "
                f"skill; to hold it near where it is set control.target_entropy={entropy:.2g}, or control.target_unit=initial with "
                "control.target_entropy=1.0",
            )
        if target is not None and not 0 <= target <= self._largest:
            yield (
                "impossible_target",
                f"no policy has the target of {target:.3g} nats: entropies lie between 0 and {self._largest:.3g} here",
            )
        self._exhausted = self._exhausted + 1 if metrics.get("control/phase") == Phase.EXHAUSTED.number else 0
        if self._exhausted >= EXHAUSTED_STEPS:
            yield (
                "out_of_reach",
                f"the controller has been at the end of its means for {EXHAUSTED_STEPS} steps, the target of {target:.3g} nats is out "
                "of reach: take one nearer to the entropy there is, or raise alpha_limit or handoff_coefficient_max of control",
            )
