"""A run folder as the plots and the report see it: metrics as columns, settings as nested mappings."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_entropic.config.secrets import without_secrets
from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability.metrics import read_metrics

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RunData:
    """`metrics` is read_metrics' list; `config` the saved Config: sections, each a mapping of field to value."""

    path: Path
    config: Mapping[str, Mapping[str, Any]]
    metrics: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return str(self.setting("run", "name", self.path.name))

    @property
    def steps(self) -> Array:
        """[steps] the logged steps as people count them, from 1, as floats. The field `step` counts from 0."""
        return self.column("step") + 1

    def setting(self, section: str, field: str, default: Any = None) -> Any:
        """A setting of the saved config; `default` when this run's version had no such field."""
        return self.config.get(section, {}).get(field, default)

    def column(self, field: str) -> Array:
        """[steps] float64 values of a metric; NaN where a step has none."""
        values = (line.get(field) for line in self.metrics)
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def has(self, field: str) -> bool:
        """Whether any step has a finite value of the metric."""
        return bool(np.isfinite(self.column(field)).any())

    @property
    def control_kind(self) -> str:
        return str(self.setting("control", "kind", "none"))

    @property
    def target_entropy(self) -> Array:
        """[steps] the entropy the controller steered to; NaN in runs that do not steer to one, whatever they logged."""
        target = self.column("control/target_entropy")
        return np.full_like(target, np.nan) if self.control_kind == "none" else target

    @property
    def steered_field(self) -> str:
        """The metric that the target is about."""
        return f"policy/{self.setting('control', 'steer_by', 'entropy')}"

    @property
    def phases(self) -> list[Phase | None]:
        """[steps] who steered; None where a step does not say (other kinds of control, older runs)."""
        by_number = dict(enumerate(Phase))
        return [by_number.get(line.get("control/phase", -1)) for line in self.metrics]

    @property
    def tuned_from(self) -> int | None:
        """The first step, counted from 1, whose gains follow from the estimated plant; None when there is none."""
        return next((line["step"] + 1 for line in self.metrics if line.get("control/gains_tuned")), None)


def load_run(run_dir: str | os.PathLike[str]) -> RunData:
    """Reads config.yaml and metrics.jsonl; a run killed before its first step has no metrics yet, which is no error.

    Raises FileNotFoundError when there is no config.yaml (not a run folder), ValueError when a file is malformed.
    """
    path = Path(run_dir)
    config, metrics_path = load_settings(path), path / "metrics.jsonl"
    return RunData(path, config, read_metrics(metrics_path) if metrics_path.is_file() else [])


def load_settings(path: Path) -> dict[str, dict[str, Any]]:
    """The saved config.yaml of the run folder `path`. Raises as load_run."""
    config_path = path / "config.yaml"
    if not config_path.is_file():
        raise FileNotFoundError(f"{config_path}: no such file; {path} is not the folder of a run")
    try:
        config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{config_path}: not YAML ({error})") from error
    if not isinstance(config, dict) or not all(isinstance(section, dict) for section in config.values()):
        raise ValueError(f"{config_path}: not a mapping of sections (run, model, ...) to fields")
    return without_secrets(config)


def smooth(values: Array) -> Array:
    """[steps] centred moving mean over `smoothing_window(len(values))` steps; NaNs are left out.

    Towards the ends the window shrinks on both sides alike: the first and last values stay as they are, without bias.
    """
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    position = np.arange(len(values))
    half = np.minimum(smoothing_window(len(values)) // 2, np.minimum(position, position[::-1]))
    low, high = position - half, position + half + 1
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def smoothing_window(steps: int) -> int:
    """An odd number of steps, about a twelfth of the run; 1 (no smoothing) for the shortest runs."""
    return 1 if steps < 12 else 2 * (steps // 24) + 3
