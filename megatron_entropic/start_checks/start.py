"""All checks of a run that can be made before anything is started."""

from megatron_entropic.config import Config
from megatron_entropic.start_checks.data import check_data
from megatron_entropic.start_checks.learning import check_learning
from megatron_entropic.start_checks.model import check_model
from megatron_entropic.start_checks.outside import check_outside
from megatron_entropic.start_checks.tracking import check_tracking
from megatron_entropic.start_checks.validation import check_validation


def check_start(cfg: Config, *, weights: bool = True) -> list[str]:
    """Raises ValueError, or OSError, naming what keeps the run from working; else remarks on its data, a line each.

    `weights`: whether those of model.hf_path are needed, as they are unless a checkpoint is resumed.
    """
    arch = check_model(cfg, weights=weights)
    if cfg.rollout.engine == "replay":
        from megatron_entropic.rollout.sampling_record import check_replay  # here: it reads weights, for which it imports torch

        check_replay(cfg.model, cfg.rollout)
    check_learning(cfg, arch.vocab_size)
    check_outside(cfg)
    check_tracking(cfg)
    return [*check_data(cfg), *check_validation(cfg)]
