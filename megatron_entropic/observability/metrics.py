"""metrics.jsonl: one JSON object a step, appended durably, read back exactly.

Floats are written with `repr`, the shortest text that reads back to the same bits. JSON has no NaN or infinity, so those are
written as the strings "NaN", "Infinity" and "-Infinity" and read back as floats; null means "does not apply to this run".
"""

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from megatron_entropic.control.handoff import Phase
from megatron_entropic.system.atomic_files import naming, write_atomically

MetricValue = float | int | None


@dataclass(frozen=True)
class MetricField:
    """Unit and meaning of a field of metrics.jsonl; `optional` fields are null where the run has no such thing."""

    unit: str
    description: str
    optional: bool = False


METRIC_FIELDS: dict[str, MetricField] = {
    "step": MetricField("step", "step of the loop, from 0"),
    "policy/entropy": MetricField("nats", "token-mean entropy of the policy over the step's responses, at rollout.temperature"),
    "policy/clamped_entropy": MetricField("nats", "the same for AEnt's clamped entropy", optional=True),
    # -- what control applied in the step's last update
    "control/alpha": MetricField("1", "EntroPIC's coefficient", optional=True),
    "control/coefficient": MetricField("1", "coefficient of the entropy bonus", optional=True),
    "control/selected_fraction": MetricField("1", "fraction of tokens that clip_cov or kl_cov acted on, of all updates", optional=True),
    "control/phase": MetricField("1", f"who steered: {', '.join(f'{phase.number} {phase}' for phase in Phase)}", optional=True),
    # -- what it had to work with, mean over the step's response tokens
    "control/active_fraction": MetricField("1", "fraction of tokens with an advantage other than 0"),
    "control/actuated_fraction": MetricField("1", "fraction of tokens that the actuator re-weights"),
    "control/authority": MetricField("1", "how far one unit of alpha moves the entropy, to first order and up to the step size"),
    "control/pressure": MetricField("1", "how far the policy loss alone lowers the entropy, in the unit of control/authority"),
    "control/bonus_authority": MetricField("1", "how far one unit of entropy bonus moves it, in the unit of control/authority"),
    "control/response": MetricField(
        "nats", "change of the entropy steered by, by one update, on the same tokens; mean over the step's updates", optional=True
    ),
    "control/response_tokens": MetricField("tokens", "those it was measured on, of all updates", optional=True),
    # -- the controller after the step's last measurement
    "control/target_entropy": MetricField("nats", "the target: the schedule's, or what the user asked for", optional=True),
    "control/adapted_coefficient": MetricField("1", "AEC's coefficient, applied only while the entropy is low", optional=True),
    "control/setpoint": MetricField("nats", "the entropy wanted now, on the soft way to the target", optional=True),
    "control/measured_entropy": MetricField("nats", "the latest measurement it steered by", optional=True),
    "control/predicted_entropy": MetricField("nats", "what its model of the plant expected that measurement to be", optional=True),
    "control/measurement_noise": MetricField("nats", "estimated standard deviation of the measurements' noise", optional=True),
    "control/plant_gain": MetricField("nats", "estimated change of the entropy per update and unit of alpha", optional=True),
    "control/plant_gain_error": MetricField("nats", "standard error of control/plant_gain", optional=True),
    "control/plant_drift": MetricField("nats", "estimated change of the entropy per update at alpha 0", optional=True),
    "control/plant_drift_error": MetricField("nats", "standard error of control/plant_drift", optional=True),
    "control/plant_confidence": MetricField("1", "the gain in standard errors, positive where its sign is right", optional=True),
    "control/gains_tuned": MetricField("1", "1 while kp and ki follow from the estimated plant, 0 while they are given", optional=True),
    "control/kp": MetricField("1/nat", "proportional gain", optional=True),
    "control/ki": MetricField("1/(nat x update)", "integral gain", optional=True),
    "control/level": MetricField("nats", "the entropy freed of most of the noise: of the policy about to be updated", optional=True),
    "control/level_error": MetricField("nats", "standard error of control/level", optional=True),
    "control/correction": MetricField("1", "part of the effort that answers to an error that stays, in units of alpha", optional=True),
    "control/effort": MetricField("1", "what the next update delivers, in units of alpha", optional=True),
    "control/trust": MetricField("1", "fraction of alpha applied: below 1 when too few tokens have an advantage", optional=True),
    "control/bonus_unit": MetricField("1", "bonus coefficient that moves the entropy like one unit of alpha", optional=True),
    "reward/mean": MetricField("1", "mean reward over the step's rollouts"),
    "reward/solve_all": MetricField("1", "fraction of prompts of which every rollout has reward 1"),
    "reward/solve_none": MetricField("1", "fraction of prompts of which no rollout has a reward above 0"),
    "reward/timeouts": MetricField("rollouts", "answers whose verification reached a limit of time or memory: scored 0", optional=True),
    "reward/failures": MetricField("rollouts", "answers on which the verifier failed: scored 0", optional=True),
    "reward/overlong": MetricField("1", "what length cost, mean over the rollouts: part of reward/mean, 0 or below", optional=True),
    "loss/policy": MetricField("1", "policy-gradient loss, mean over the step's updates"),
    "loss/total": MetricField("1", "loss with the control terms, mean over the step's updates"),
    "grad_norm": MetricField("1", "global gradient norm before clipping, mean over the step's updates"),
    "response/length_mean": MetricField("tokens", "mean response length, end-of-sequence token included"),
    "rollout/staleness_max": MetricField("versions", "most weight versions a rollout was behind the policy it updated"),
    "rollout/logprob_gap": MetricField("nats", "largest |trainer - sampler| log-prob over the step's response tokens"),
    "rollout/unknown_tokens": MetricField(
        "tokens", "sampled ids that the tokenizer has no token for; their responses score 0", optional=True
    ),
    "time/step_s": MetricField("s", "wall-clock time of the whole step"),
    "time/rollout_s": MetricField("s", "generating and scoring the rollouts, as far as the update waited for it"),
    "time/score_s": MetricField("s", "of it, waiting for scores once everything was generated", optional=True),
    "time/update_s": MetricField("s", "log-prob pass and optimizer updates"),
    "time/response_s": MetricField("s", "of it, measuring control/response", optional=True),
    "time/sync_s": MetricField("s", "sending the new weights to the rollout engine, once it has finished what it generates"),
    "time/checkpoint_s": MetricField("s", "what saving held training up between the step before and this one", optional=True),
    "time/validation_s": MetricField("s", "validation after this step: answering and judging", optional=True),
    "perf/tokens_per_s": MetricField("tokens/s", "prompt and response tokens trained on, per second of the step without validation"),
    "perf/rollout_tokens_per_s": MetricField(
        "tokens/s", "response tokens per second of time/rollout_s; none where generation goes on during the update", optional=True
    ),
    "perf/update_tokens_per_s": MetricField("tokens/s", "prompt and response tokens per second of time/update_s", optional=True),
    "perf/rollout_mfu": MetricField("1", "the model's arithmetic of generating, as a fraction of the devices' peak", optional=True),
    "perf/update_mfu": MetricField("1", "the same of the update, without what is computed again to save memory", optional=True),
}

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsWriter:
    """Appends one line a step to `path`. A line is one write and one fsync: a killed run leaves whole lines.

    It is a Tracker (trackers.py). Only one process writes a file. Raises ValueError when `path` holds a torn or bad line:
    a run that resumes calls `truncate_after` first.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(_parsed_lines(self.path)) if self.path.exists() else []
        if lines and lines[-1].fields is None:
            raise ValueError(f"{self.path}, line {len(lines)}: torn line of a killed run; resume the run, or remove that line")
        self.last_step: int | None = lines[-1].step if lines else None
        self._file: int | None = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Appends `metrics` as the line of `step`. On return the line is on the disk.

        Fields beyond METRIC_FIELDS are welcome. Raises ValueError naming documented fields that are missing (or null without
        being optional), values that are not plain numbers, and a step that does not follow the last one written.
        """
        if self._file is None:
            raise ValueError(f"{self.path}: the writer is closed")
        if self.last_step is not None and step <= self.last_step:
            raise ValueError(
                f"{self.path}: step {step} does not follow step {self.last_step}; "
                "resume that run, or set run.dir or run.name for a new one"
            )
        fields = {"step": step, **metrics}
        if fields["step"] != step:
            raise ValueError(f"{self.path}: field step is {fields['step']}, the line is of step {step}")
        _check_fields(f"{self.path}, step {step}", fields)
        line = (json.dumps({name: _to_json(value) for name, value in fields.items()}, allow_nan=False) + "\n").encode()
        with naming(self.path):
            written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes of step {step} were written; is the disk full?")
        with naming(self.path):
            os.fsync(self._file)
        self.last_step = step

    def complete(self, more: Mapping[str, MetricValue]) -> dict[str, Any]:
        """Adds `more` to the last line, which a stopped run left without; returns that line. Whole or not at all, on the disk."""
        lines = read_metrics(self.path)
        _check_fields(f"{self.path}, step {self.last_step}", {**lines[-1], **more})
        lines[-1] |= more
        self.close()
        content = "".join(json.dumps({name: _to_json(value) for name, value in line.items()}, allow_nan=False) + "\n" for line in lines)
        write_atomically(self.path, content.encode())
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        return lines[-1]

    def close(self) -> None:
        """Closes the file; safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order of their steps.

    A last line without its newline was torn by a kill: it is dropped with a warning. Any other bad line (not a JSON object,
    no integer step, a step that does not follow the line before) raises ValueError with the file and line number.
    """
    lines: list[dict[str, Any]] = []
    for line in _parsed_lines(Path(path)):
        if line.fields is None:
            warnings.warn(f"{path}, line {len(lines) + 1}: torn last line dropped (the run was killed while writing it)", stacklevel=2)
        else:
            lines.append(line.fields)
    return lines


def truncate_after(path: str | os.PathLike[str], step: int) -> int:
    """Removes the lines after `step`, and a torn last line, so that a run resumed from that step's checkpoint can append.

    Returns the number of lines removed. A missing file counts as an empty one. `step=-1` removes every line.
    """
    path = Path(path)
    if not path.exists():
        return 0
    lines = list(_parsed_lines(path))
    kept = [line for line in lines if line.fields is not None and line.step <= step]
    if len(kept) < len(lines):
        with path.open("r+b") as file:
            file.truncate(kept[-1].end if kept else 0)
            os.fsync(file.fileno())
    return len(lines) - len(kept)


@dataclass(frozen=True)
class _Line:
    """A line of the file: its fields (None when torn), its step and the offset just after its newline."""

    fields: dict[str, Any] | None
    step: int
    end: int


def _parsed_lines(path: Path) -> Iterator[_Line]:
    end, last_step = 0, -1
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            end += len(raw)
            if not raw.endswith(b"\n"):
                yield _Line(None, last_step + 1, end)
                return
            fields = _parse(f"{path}, line {number}", raw)
            if fields["step"] <= last_step:
                raise ValueError(
                    f"{path}, line {number}: step {fields['step']} does not follow step {last_step}: two runs wrote here at once; "
                    f"`megatron-entropic repair {quote(str(path.parent))}` keeps the history that the latest checkpoint resumes from"
                )
            last_step = fields["step"]
            yield _Line(fields, last_step, end)


def _parse(where: str, raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(fields, dict) or type(fields.get("step")) is not int or fields["step"] < 0:
        raise ValueError(f"{where}: not a JSON object with an integer field step >= 0")
    return {name: _NON_FINITE.get(value, value) if isinstance(value, str) else value for name, value in fields.items()}


def _check_fields(where: str, fields: Mapping[str, object]) -> None:
    missing = [name for name in METRIC_FIELDS if name not in fields]
    if missing:
        raise ValueError(f"{where}: missing metrics: {', '.join(missing)}")
    for name, value in fields.items():
        if value is None and (name not in METRIC_FIELDS or METRIC_FIELDS[name].optional):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where}: metric {name} is {value!r} ({type(value).__name__}); it must be a plain int or float")


def _to_json(value: MetricValue) -> MetricValue | str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
