"""How far the runs of a sweep are, as their folders say."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from megatron_entropic.config.loading import ConfigError, load_config, to_dict
from megatron_entropic.config.resume import differences
from megatron_entropic.config.sweep import SweepRun
from megatron_entropic.observability.history import read_history
from megatron_entropic.system.stop_signal import EXIT_STOPPED

_CHANGEABLE = ("checkpoint", "parallel", "profile", "reward")
"""Sections that may be others when a sweep goes on: how a run computes, and not what."""
_CHANGEABLE_TRAINER = ("trainer.steps", "trainer.report", "trainer.trackers", "trainer.tensorboard", "trainer.export_hf")


class SweepState(StrEnum):
    """How far a run of a sweep is."""

    NEW = "new"
    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Planned:
    """A run and what its folder says of it."""

    run: SweepRun
    state: SweepState
    steps: int
    """Done so far."""
    changed: bool = False
    """Whether it goes on with other settings than it was saved with, such as more steps."""

    def arguments(self, source: str, *, overwrite: bool) -> list[str]:
        """Those of `megatron-entropic` that start it, or resume it."""
        if self.state is SweepState.NEW:
            return ["train", source, *self.run.overrides, *(["--overwrite"] if overwrite else [])]
        overrides = [word for word in self.run.overrides if not word.startswith("run.")] if self.changed else []
        return ["train", str(self.run.cfg.run_dir), "--resume", *overrides]

    def __str__(self) -> str:
        steps = f", {self.steps} of {self.run.cfg.trainer.steps} steps" if self.state is not SweepState.NEW else ""
        return f"{self.state:8}{self.run.cfg.run_dir}{steps}"


def plan_sweep(runs: Sequence[SweepRun], *, overwrite: bool = False) -> list[Planned]:
    """What is left to do. Raises ConfigError for a folder that holds a run with other settings. `overwrite`: all starts anew."""
    if overwrite:
        return [Planned(run, SweepState.NEW, 0) for run in runs]
    return [look_at(run) for run in runs]


def look_at(run: SweepRun) -> Planned:
    """The run and its state. Raises ConfigError for a folder that holds a run with other settings."""
    run_dir = run.cfg.run_dir
    if not (run_dir / "config.yaml").is_file():
        return Planned(run, SweepState.NEW, 0)
    changed = differences(to_dict(load_config(run_dir / "config.yaml")), to_dict(run.cfg))
    others = [each for each in changed if each.setting.split(".")[0] not in _CHANGEABLE and each.setting not in _CHANGEABLE_TRAINER]
    if others:
        raise ConfigError(
            f"{run_dir} holds a run with other settings (- saved, + now); choose another run.name, or pass --overwrite to start all "
            "runs of the sweep anew:\n" + "\n".join(map(str, others))
        )
    metrics = run_dir / "metrics.jsonl"
    steps = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
    starts = read_history(run_dir)
    code = starts[-1].code if starts else None
    if code == 0 and steps >= run.cfg.trainer.steps:
        return Planned(run, SweepState.DONE, steps)
    state = SweepState.FAILED if code not in (None, 0, EXIT_STOPPED) else SweepState.BEGUN
    return Planned(run, state, steps, changed=bool(changed))
