"""The validation sets of a run, read before it starts."""

from megatron_entropic.config import Config
from megatron_entropic.evaluation.sets import open_set


def check_validation(cfg: Config) -> list[str]:
    """Remarks on the sets, a line each. Raises ConfigError naming a set that cannot be read or whose prompts do not fit."""
    if not cfg.validation.every:
        return []
    opened = [open_set(cfg, settings) for settings in cfg.validation.sets]
    return [
        f"validation on {each.name}: {len(each.prompts)} problems x {each.settings.samples} samples"
        + (f"; {each.remark}" if each.remark else "")
        for each in opened
    ]
