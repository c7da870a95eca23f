"""`megatron-entropic target`: asks a run for another entropy target, and says where the run is."""

import logging
import math
from pathlib import Path

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import make_controller
from megatron_entropic.control.target_file import NAME, AskedTarget, TargetError, read_target, write_target
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.start_checks.learning import largest_entropy

logger = logging.getLogger(__name__)


def request_target(run_dir: Path, target: float | None) -> None:
    """Asks the run for `target` nats, or for its schedule's target again (None).

    Raises TargetError for a folder that is no run, a run without an entropy target, or a target that no policy can have;
    ConfigError for unreadable settings. For a run that has done all of its steps it warns: nobody will read what was asked.
    """
    cfg = _steered_run(run_dir)
    if target is not None and math.isfinite(target):
        _check_reachable(cfg.control, model_folder(cfg.model.hf_path).hf_dir, target)
    if len(_metrics(run_dir)) >= cfg.trainer.steps:
        logger.warning("warning: %s has done all of its %d steps; nothing reads the new target", run_dir, cfg.trainer.steps)
    write_target(run_dir, target)


def describe_target(run_dir: Path) -> str:
    """The target of the run's last step, the entropy it steers by, and what was asked for. Raises as `request_target`."""
    cfg, metrics, asked = _steered_run(run_dir), _metrics(run_dir), read_target(run_dir / NAME)
    if not metrics:
        return "\n".join([f"{run_dir}: no step done yet", *([_wish(asked, None)] if asked else [])])
    last = metrics[-1]
    target = last.get("control/target_entropy")
    lines = [
        f"{run_dir}: {len(metrics)} of {cfg.trainer.steps} steps done",
        f"target   {'not logged' if target is None else f'{target:.4g} nats'}",
        f"entropy  {last[f'policy/{cfg.control.steer_by}']:.4g} nats",
    ]
    return "\n".join([*lines, *([_wish(asked, target)] if asked else [])])


def _check_reachable(control: ControlConfig, hf_dir: Path, target: float) -> None:
    """Raises TargetError for what no entropy is: below 0, or above that of the uniform distribution where the model is there."""
    if target < 0:
        raise TargetError(f"{target:g} nats: an entropy is never below 0")
    if (hf_dir / "config.json").is_file():
        largest = largest_entropy(control, Architecture.from_hf(hf_dir).vocab_size)
        if target > largest:
            raise TargetError(f"{target:g} nats: no policy over this vocabulary has more than {largest:.2f} (its logarithm)")


def _wish(asked: AskedTarget, target: float | None) -> str:
    when = f" at {asked.asked_at}" if asked.asked_at else ""
    if asked.target_entropy is None:
        return f"asked    for the schedule's target{when}"
    taken = target is not None and math.isclose(asked.target_entropy, target, rel_tol=1e-9, abs_tol=1e-12)
    state = "it is the target" if taken else "a running run takes it up in its next step"
    return f"asked    for {asked.target_entropy:g} nats{when}: {state}"


def _steered_run(run_dir: Path) -> Config:
    """The settings of a run whose controller has a target."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise TargetError(f"{run_dir} is not the folder of a run: it has no config.yaml")
    cfg = load_config(path)
    if "target_entropy" not in make_controller(cfg).report():
        raise TargetError(f"{run_dir}: control.kind={cfg.control.kind} does not steer to an entropy target")
    return cfg


def _metrics(run_dir: Path) -> list[dict[str, float]]:
    path = run_dir / "metrics.jsonl"
    return read_metrics(path) if path.is_file() else []
