"""Runs one case and says how it went."""

import dataclasses
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_entropic.config.loading import load_config, override
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.evaluation.evaluate import evaluate
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.system.atomic_files import write_atomically
from megatron_entropic.trainer import train
from recipes.lab.cases import Case

PROMPTS = 256
"""Fresh problems that the trained policy is scored on."""
SERIES = ("policy/entropy", "control/alpha", "control/coefficient", "control/phase", "reward/mean")
GREEDY = 1e-3
"""A temperature at which sampling is greedy."""


@dataclass(frozen=True)
class Result:
    """One case: its curves (one value a step) and the scores of the policy it ended with."""

    case: dict[str, Any]
    target: float | None
    series: dict[str, list[float | None]]
    greedy: float
    avg: float
    pass_at_8: float
    distinct: float


def load_result(folder: Path) -> Result | None:
    """The result of a case that was finished, else None."""
    path = folder / "result.json"
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def run_case(case: Case, out: Path) -> None:
    """Trains and scores `case` in this process (one rank, one thread) and writes out/<case>/result.json; a torn run starts over."""
    folder = out / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    logging.basicConfig(filename=folder / "log.txt", level=logging.INFO, force=True)
    cfg = load_config("quickstart", [*case.overrides, override("run.dir", folder)])
    with (folder / "progress.txt").open("w") as progress:
        os.dup2(progress.fileno(), 1)
        os.dup2(progress.fileno(), 2)
        train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))
    lines = read_metrics(folder / "metrics.jsonl")
    series = {name: [line.get(name) for line in lines] for name in SERIES}
    scored = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, hf_path=folder / "hf"))
    sampled = evaluate(scored, PROMPTS)
    greedy = evaluate(
        dataclasses.replace(
            scored,
            rollout=dataclasses.replace(cfg.rollout, temperature=GREEDY),
            batch=dataclasses.replace(cfg.batch, samples_per_prompt=1),
        ),
        PROMPTS,
    )
    result = Result(
        case=dataclasses.asdict(case),
        target=lines[-1]["control/target_entropy"],
        series=series,
        greedy=greedy.avg,
        avg=sampled.avg,
        pass_at_8=sampled.pass_at[8],
        distinct=sampled.distinct,
    )
    write_atomically(folder / "result.json", json.dumps(dataclasses.asdict(result)).encode())
    shutil.rmtree(folder / "rollouts", ignore_errors=True)
    shutil.rmtree(folder / "hf", ignore_errors=True)
