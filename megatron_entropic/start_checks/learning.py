"""Settings with which nothing can be learned, or that steer where no policy can be."""

import math

from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.config.schema import ADVANTAGES
from megatron_entropic.control.kinds import kind_of


def check_learning(cfg: Config, vocab_size: int) -> None:
    """Raises ConfigError for what trains nothing, and for entropies that a policy over `vocab_size` tokens cannot have."""
    if cfg.rollout.temperature == 0:
        raise ConfigError(
            "rollout.temperature=0 is greedy: it is for `megatron-entropic evaluate`; training samples, so give more than 0"
        )
    if cfg.batch.samples_per_prompt == 1 and cfg.algorithm.advantage in ADVANTAGES:
        raise ConfigError(
            f"batch.samples_per_prompt=1 trains nothing: algorithm.advantage={cfg.algorithm.advantage} compares the samples of a "
            "prompt with one another, and the advantage of one alone is 0; take at least 2, such as 8"
        )
    _check_advantage(cfg.algorithm.advantage, cfg.batch.samples_per_prompt)
    control, kind = cfg.control, kind_of(cfg.control)
    if kind.selection is not None and kind.selection.needs_old_policy and cfg.batch.mini_batches == 1 and not cfg.rollout.max_staleness:
        raise ConfigError(
            f"control.kind={control.kind} needs batch.mini_batches >= 2 or rollout.max_staleness >= 1: "
            "its penalty |log pi - log pi_old| is 0 in the first update on fresh rollouts"
        )
    if kind.targeted:
        _check_target(control, _largest(control, vocab_size, clamped=control.steer_by == "clamped_entropy"))
    if kind.ranged:
        _check_range(control, _largest(control, vocab_size, clamped=True))


def _check_advantage(advantage: str, samples: int) -> None:
    """A function of the user's is tried on groups of `samples` of which none, all, one and every other sample is right."""
    if advantage in ADVANTAGES:
        return
    import torch  # only for this: the launcher is up in a fraction of a second

    from megatron_entropic.algorithms import make_advantage

    none_S = torch.zeros(samples)
    some_S = none_S.clone()
    some_S[::2] = 1.0
    rewards_PS = torch.stack([none_S, none_S + 1, torch.eye(1, len(none_S))[0], some_S])
    try:
        make_advantage(advantage)(rewards_PS)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def largest_entropy(control: ControlConfig, vocab_size: int) -> float:
    """The largest value, in nats, of the entropy that the target is about: that of the uniform distribution."""
    return _largest(control, vocab_size, clamped=control.steer_by == "clamped_entropy")


def _largest(control: ControlConfig, vocab_size: int, *, clamped: bool) -> float:
    return math.log(vocab_size - math.floor(control.clamp * vocab_size) if clamped else vocab_size)


def _check_target(control: ControlConfig, largest: float) -> None:
    targets = [("control.target_entropy", control.target_entropy)]
    targets += [(f"control.target_points, update {update}", target) for update, target in control.target_points]
    for name, target in targets:
        if target < 0:
            raise ConfigError(f"{name}={target:g}: an entropy is never below 0 nats")
        if control.target_unit == "nats" and target > largest:
            raise ConfigError(f"{name}={target:g}: no policy over this vocabulary has more than {largest:.2f} nats (its logarithm)")


def _check_range(control: ControlConfig, largest: float) -> None:
    if control.entropy_high < 0 or control.entropy_low > largest:
        raise ConfigError(
            f"control.entropy_low={control.entropy_low:g}, entropy_high={control.entropy_high:g}: the clamped entropy lies between 0 "
            f"and {largest:.2f} nats for this vocabulary"
        )
