"""What settings name outside the package: found and tried before anything is started."""

from megatron_entropic.config import Config
from megatron_entropic.config.control import ACTUATORS, KINDS
from megatron_entropic.config.schema import POLICY_LOSSES, TRACKER_ENTRY_POINTS, TRACKERS
from megatron_entropic.control import make_controller
from megatron_entropic.system.named_functions import named_function


def check_outside(cfg: Config) -> None:
    """Raises ValueError naming the setting and what is wrong: nothing of that name, or what raises or returns nonsense on two tokens.

    Trackers are found and not made: they open files and connections. An engine is the first thing that rank 0 makes.
    """
    for tracker in set(cfg.trainer.trackers) - set(TRACKERS):
        named_function("trainer.trackers", tracker, TRACKERS, TRACKER_ENTRY_POINTS)
    if cfg.control.kind not in KINDS:
        make_controller(cfg)
    if cfg.algorithm.policy_loss not in POLICY_LOSSES or cfg.control.actuator not in ACTUATORS:
        _try_on_two_tokens(cfg)


def _try_on_two_tokens(cfg: Config) -> None:
    import torch  # only for this: the launcher is up in a fraction of a second

    from megatron_entropic.algorithms import actuator_mask, make_policy_loss

    algorithm, control = cfg.algorithm, cfg.control
    ratio_T, advantage_T = torch.ones(2, requires_grad=True), torch.tensor([1.0, -1.0])
    make_policy_loss(algorithm.policy_loss)(
        ratio_T, advantage_T, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high, weight_T=torch.ones(2)
    )
    log_prob_T, entropy_T = torch.tensor([0.9, 0.1]).log(), torch.full((2,), 0.33)
    actuator_mask(
        control.actuator,
        log_prob_T,
        entropy_T,
        mean_lowering_T=torch.zeros(2),
        high_prob_threshold=control.high_prob_threshold,
    )
