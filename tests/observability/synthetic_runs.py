"""Metrics, rollouts and run folders made up for the tests; they resemble those of a real run."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megatron_entropic.config import BatchConfig, Config, ControlConfig, RunConfig, TrainerConfig
from megatron_entropic.control.handoff import Phase
from megatron_entropic.observability.metrics import METRIC_FIELDS, MetricsWriter
from megatron_entropic.rollout.recording import RolloutWriter
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.tasks.task import Problem

MakeRun = Callable[..., Path]
TARGET = 0.9


def synthetic_metrics(steps: int, kind: str = "entropic", seed: int = 0) -> list[dict[str, Any]]:
    """Metrics of a run whose entropy is held at TARGET (entropic, aent) or falls to 0.6 (none)."""
    rng = np.random.default_rng((seed, len(kind)))
    controlled, lines = kind != "none", []
    for step in range(steps):
        t = step / 39
        falling = 0.9 - 0.3 * (1 - np.exp(-2.2 * t)) / (1 - np.exp(-2.2))
        entropy = (TARGET - 0.05 * np.exp(-6 * t) * np.sin(9 * t) if controlled else falling) + 0.008 * rng.standard_normal()
        reward = 0.95 - 0.2 * np.exp(-3 * t) + 0.012 * rng.standard_normal()
        rollout_s, update_s, sync_s = (base * (1 + 0.06 * rng.random()) for base in (1.5, 1.2, 0.1))
        step_s = rollout_s + update_s + sync_s + 0.2 + (2.0 if step == 0 else 0.0)
        length = 7.0 + t + 0.1 * rng.standard_normal()
        loss = 0.02 * rng.standard_normal()
        lines.append(
            {name: None for name, field in METRIC_FIELDS.items() if field.optional}
            | synthetic_control(step, float(entropy), kind)
            | {
                "policy/entropy": float(entropy),
                "policy/clamped_entropy": float(entropy) * 0.8 if "aent" in kind else None,
                "control/alpha": float(np.clip(3 * (entropy - TARGET) - 0.5 * t, -1, 1)) if kind.startswith("entropic") else None,
                "control/coefficient": float(2e-4 * (1 + t)) if "aent" in kind else None,
                "reward/mean": float(reward),
                "reward/solve_all": float(np.clip(reward - 0.25, 0, 1)),
                "reward/solve_none": float(np.clip(0.06 - 0.05 * t, 0, 1)),
                "loss/policy": float(loss),
                "loss/total": float(loss * 1.1),
                "grad_norm": float(0.4 + 0.08 * rng.random()),
                "response/length_mean": float(length),
                "rollout/staleness_max": 0,
                "rollout/logprob_gap": float(1e-6 * np.exp(0.4 * rng.standard_normal())),
                "time/step_s": float(step_s),
                "time/rollout_s": float(rollout_s),
                "time/update_s": float(update_s),
                "time/sync_s": float(sync_s),
                "perf/tokens_per_s": float(4500 / step_s),
            }
        )
    return lines


def synthetic_control(step: int, entropy: float, kind: str) -> dict[str, Any]:
    """The control/* fields beyond alpha and coefficient: a probe of twelve updates, gains tuned from step 14, then alpha steers."""
    measured = {"active_fraction": 0.2, "actuated_fraction": 0.9, "authority": 0.02, "pressure": 0.01, "bonus_authority": 0.06}
    tuned = step >= 14
    steering = {
        "phase": Phase.IDLE.number if step == 0 else Phase.ALPHA.number if step > 12 else Phase.PROBING.number,
        "target_entropy": TARGET,
        "setpoint": TARGET + 0.02 * float(np.exp(-step / 5)),
        "measured_entropy": entropy,
        "predicted_entropy": entropy + 0.004 * (-1) ** step,
        "measurement_noise": 0.004,
        "plant_gain": -0.008 * step / (step + 2),
        "plant_gain_error": 0.02 / (step + 1),
        "plant_drift": -0.003,
        "plant_drift_error": 0.01 / (step + 1),
        "plant_confidence": 0.4 * step * (step + 1) / (step + 2),
        "gains_tuned": int(tuned),
        "kp": 20.0 if tuned else 3.0,
        "ki": 1.0 if tuned else 0.05,
        "effort": -0.2,
        "trust": 1.0,
        "bonus_unit": 0.05,
    }
    known = measured | (steering if kind.startswith("entropic") else {})
    return {f"control/{name}": value for name, value in known.items()}


def synthetic_rollouts(step: int, text: str = "3 + 4 = 7") -> tuple[list[Rollout], dict[int, Problem], list[float]]:
    """Two prompts with four rollouts each; every second answer is wrong."""
    rollouts, problems, rewards = [], {}, []
    for prompt_index in (2 * step, 2 * step + 1):
        problems[prompt_index] = Problem(prompt=f"Write {prompt_index} as a sum:", data={"number": prompt_index})
        for sample_index in range(4):
            rollouts.append(
                Rollout(
                    prompt_index=prompt_index,
                    sample_index=sample_index,
                    prompt_ids=np.array([5, 6, prompt_index], dtype=np.int32),
                    response_ids=np.array([11, 12, sample_index, 2], dtype=np.int32),
                    log_probs=np.array([-0.1, -1.0 / 3, -1e-7, -2.0], dtype=np.float32),
                    text=text,
                    finish_reason="stop",
                    first_version=step,
                    last_version=step,
                    server="server-0",
                )
            )
            rewards.append(float(sample_index % 2))
    return rollouts, problems, rewards


def make_run_dir(
    base: Path, name: str = "demo", kind: str = "entropic", steps: int = 40, planned: int = 40, text: str = "3 + 4 = 7"
) -> Path:
    """The folder base/name of a run with `steps` of `planned` steps done."""
    run_dir = base / name
    config = Config(
        run=RunConfig(name=name),
        batch=BatchConfig(prompts_per_step=2, samples_per_prompt=4),
        control=ControlConfig(kind=kind, target_entropy=TARGET, kp=3.0, ki=0.05, actuator="signed"),  # type: ignore[arg-type]
        trainer=TrainerConfig(steps=planned),
    )
    run_dir.mkdir()
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    (run_dir / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    writer, recorder = MetricsWriter(run_dir / "metrics.jsonl"), RolloutWriter(run_dir / "rollouts")
    for step, metrics in enumerate(synthetic_metrics(steps, kind)):
        writer.log(step, metrics)
        recorder.write(step, *synthetic_rollouts(step, text))
    writer.close()
    return run_dir
