"""Runs the real-model lab: one run at a time, each by the product's own commands, so that a run resumes where it was stopped.

OUT/NAME/                 the run's folder: config.yaml, metrics.jsonl, logs/, rollouts/; checkpoints/ and hf/ until it is scored
OUT/NAME/greedy.json      `megatron-entropic evaluate` on the held-out sums, greedy
OUT/NAME/sampled.json     the same at temperature 1
OUT/NAME/code.txt         the commits of the project that trained it, one a start
OUT/NAME.out              what the commands printed
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config, override, save_config, to_dict
from megatron_entropic.config.resume import differences
from megatron_entropic.errors import ReportedError
from recipes.lab.code_version import code_version
from recipes.lab.real_model_progress import Progress, steps_done
from recipes.lab.real_model_runs import Plan, RealRun
from recipes.lab.watched_command import Commands

GREEDY, SAMPLED = "greedy.json", "sampled.json"


class LabError(ReportedError):
    """A run of the lab cannot be made; the message names it and what to do."""


@dataclass(frozen=True)
class RunState:
    """Progress of a run: updates done, whether its policy is there, whether it is scored."""

    updates: int
    exported: bool
    scored: bool

    def finished(self, plan: Plan, run: RealRun) -> bool:
        """Whether nothing is left to do."""
        return self.scored and self.updates >= (plan.updates if run.trained else 0)

    def text(self, plan: Plan, run: RealRun) -> str:
        """A word or two, for a list."""
        if self.finished(plan, run):
            return "done"
        if not run.trained or not (self.updates or self.exported):
            return "-"
        return f"{self.updates}/{plan.updates}" if self.updates < plan.updates else "not scored"


def state_of(folder: Path) -> RunState:
    """Progress of the run in `folder`, whether or not there is one."""
    scored = all((folder / name).is_file() for name in (GREEDY, SAMPLED))
    return RunState(steps_done(folder), (folder / "hf" / "config.json").is_file(), scored)


def changed_settings(folder: Path, plan: Plan, run: RealRun) -> list[str]:
    """Settings of the run in `folder` that are others than today's for it, as `name: then, now`. Empty where no run is."""
    if not (folder / "config.yaml").is_file():
        return []
    saved, now = to_dict(load_config(folder / "config.yaml")), to_dict(plan.config(run))
    found = [it for it in differences(saved, now) if it.setting not in ("trainer.steps", "checkpoint.every", "checkpoint.keep")]
    return [f"{it.setting}: {it.saved!r} then, {it.now!r} now" for it in found]


def run_all(plan: Plan, runs: Sequence[RealRun], out: Path, commands: Commands) -> list[str]:
    """Makes what is missing of `runs`, in order; returns the names of those that failed. Raises Stopped, LabError."""
    for run in runs:
        _check_unchanged(out / run.name, plan, run)
    waiting = [run for run in runs if not state_of(out / run.name).finished(plan, run)]
    progress, failed = Progress(plan, waiting, out), []
    progress.announce(len(runs))
    for run in waiting:
        progress.begin(run)
        code = make_run(plan, run, out, commands, progress)
        progress.end(run, code)
        failed += [run.name] if code else []
    return failed


def make_run(plan: Plan, run: RealRun, out: Path, commands: Commands, progress: Progress) -> int:
    """Trains what is left of a run and scores it; the exit code of the first command that failed, or 0. Raises Stopped."""
    folder, printed = out / run.name, out / f"{run.name}.out"
    state = state_of(folder)
    if run.trained and (state.updates < plan.updates or not (state.exported or state.scored)):
        for name in (GREEDY, SAMPLED):  # of a shorter run
            (folder / name).unlink(missing_ok=True)
        _note_code(folder)
        if code := commands.run(_training(plan, run, folder), printed, progress.tick):
            return code
    elif not run.trained:
        _stand_in(plan.config(run), folder)
    for name, arguments in ((GREEDY, ["--temperature", "0"]), (SAMPLED, ["--temperature", "1", "--samples", str(plan.samples)])):
        progress.scoring(name)
        command = ["evaluate", str(folder), *plan.held_out(), "--prompts", str(plan.problems), *arguments, "--out", str(folder / name)]
        if code := commands.run(_product(command), printed, lambda: None):
            return code
    _tidy(folder)
    return 0


def _training(plan: Plan, run: RealRun, folder: Path) -> list[str]:
    """The command that begins or resumes the run."""
    if (folder / "config.yaml").is_file():
        return _product(["train", str(folder), "--resume", "--allow-fallback", f"trainer.steps={plan.updates}"])
    return _product(["train", plan.recipe, *plan.settings(run), override("run.dir", folder)])


def _product(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "megatron_entropic.cli", *arguments]


def _check_unchanged(folder: Path, plan: Plan, run: RealRun) -> None:
    """Raises LabError for a run that would resume with other settings than it was begun with."""
    if state_of(folder).finished(plan, run):
        return
    if changed := changed_settings(folder, plan, run):
        raise LabError(
            f"{folder}: was begun with other settings ({'; '.join(changed)}); choose another --out, or remove that folder to start over"
        )


def _stand_in(cfg: Config, folder: Path) -> None:
    """Makes `folder` that of a run of no updates: its policy is the model itself."""
    save_config(cfg, folder / "config.yaml")
    link = folder / "hf"
    link.unlink(missing_ok=True)
    link.symlink_to(model_folder(cfg.model.hf_path).hf_dir.resolve(), target_is_directory=True)


def _note_code(folder: Path) -> None:
    """Adds the project's version to those that trained the run."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "code.txt").open("a", encoding="utf-8") as file:
        print(code_version(), file=file)


def _tidy(folder: Path) -> None:
    """Removes what only an unfinished run needs: gigabytes."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if (folder / "hf").is_symlink():
        (folder / "hf").unlink()
    else:
        shutil.rmtree(folder / "hf", ignore_errors=True)
