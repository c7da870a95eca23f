"""`train RUN_DIR --resume`, before a rank is started: the run's settings, its base model by content, and what is said of both."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.checkpoint_files.manifest import damaged_files, read_manifest
from megatron_entropic.checkpoint_files.store import COMPANIONS, CheckpointStore
from megatron_entropic.config import Config, ModelConfig
from megatron_entropic.config.loading import ConfigError, load_config, override, to_dict
from megatron_entropic.config.resume import differences, refuse
from megatron_entropic.control.target_file import NAME, read_target, write_target
from megatron_entropic.errors import ReportedError
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.directory import CONFIG_FILE, TOKENIZER_FILE, companion_files
from megatron_entropic.hf.stop_tokens import stop_token_ids

logger = logging.getLogger(__name__)

BASE_MODEL = "base_model"
"""Folder of the run to which a checkpoint's hf/ is copied when the base model is gone: checkpoints are pruned."""
_TARGET_SETTINGS = ("control.target_entropy", "control.target_unit", "control.target_points", "control.target_shape", "control.preset")


def resumed_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    """The settings of the run in `run_dir`, wherever that folder and its base model are now. The same on every rank."""
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: no run to resume here (no config.yaml); give the folder of a run, such as runs/quickstart")
    cfg = load_config(run_dir / "config.yaml", [*overrides, override("run.dir", run_dir)])
    present = all((model_folder(cfg.model.hf_path).hf_dir / name).is_file() for name in (CONFIG_FILE, TOKENIZER_FILE))
    if present or any(given.startswith("model.hf_path=") for given in overrides) or latest_checkpoint(cfg.run_dir) is None:
        return cfg
    return replace(cfg, model=replace(cfg.model, hf_path=run_dir / BASE_MODEL))


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Folder of the latest checkpoint; None when there is none, or it is the ranks' business: they read all of it."""
    store = CheckpointStore(run_dir / "checkpoints")
    try:
        name = store.latest()
        return store.folder / name if name and store.state(name)["settings"] else None
    except (ReportedError, OSError, ValueError, KeyError):
        return None


def prepare_resume(cfg: Config, overrides: Sequence[str], *, allow_change: bool) -> bool:
    """Refuses what the latest checkpoint does not fit, and says what is taken up; returns whether there is one.

    Raises SettingsDifferenceError for settings, ConfigError for a base model that is not the one of before.
    """
    checkpoint = latest_checkpoint(cfg.run_dir)
    if checkpoint is None:
        _warn_starting_over(cfg.run_dir)
    else:
        state = CheckpointStore(checkpoint.parent).state(checkpoint.name)
        ahead = bool(state["settings"].get("rollout", {}).get("max_staleness"))
        refuse(differences(state["settings"], to_dict(cfg)), checkpoint, allow_change=allow_change, ahead=ahead)
        _take_base_model(cfg.run_dir, cfg.model, checkpoint, chat_template=cfg.task.chat_template)
    _supersede_target(cfg.run_dir, overrides)
    return checkpoint is not None


def _warn_starting_over(run_dir: Path) -> None:
    """Before the first checkpoint nothing of a run can be resumed."""
    metrics = run_dir / "metrics.jsonl"
    steps = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
    if not CheckpointStore(run_dir / "checkpoints").names():
        dropped = f"; the {steps} step(s) in {metrics} are dropped" if steps else ""
        logger.warning("warning: %s has no checkpoint: the run starts over%s", run_dir, dropped)


def _take_base_model(run_dir: Path, model: ModelConfig, checkpoint: Path, *, chat_template: bool) -> None:
    """Compares the base model with the checkpoint's copy of all but its weights, or takes that where it is gone."""
    saved = checkpoint / COMPANIONS
    if not (saved / CONFIG_FILE).is_file():  # of a version that did not save it
        return
    expected, problems = read_manifest(checkpoint)
    companions = {name: entry for name, entry in expected.items() if name.startswith(f"{COMPANIONS}/")}
    if any(problem.startswith(f"{COMPANIONS}/") for problem in problems) or damaged_files(checkpoint, companions):
        return  # the ranks name it, with all other damage
    if model.hf_path == run_dir / BASE_MODEL:
        shutil.copytree(saved, model.hf_path, dirs_exist_ok=True)
        logger.info("the base model is gone; resuming with the checkpoint's own, without its weights: %s", model.hf_path)
    if changes := list(_changes(saved, model_folder(model.hf_path).hf_dir, chat_template=chat_template)):
        raise ConfigError(
            f"model.hf_path={model.hf_path} is not the model that this run was begun with: {'; '.join(changes)}. Give the right "
            f"model.hf_path; without it (moved away) the run resumes with {saved}"
        )


def _changes(saved: Path, now: Path, *, chat_template: bool) -> Iterator[str]:
    """In what the model in `now` is another than the one in `saved`, as far as resumed training can tell."""
    was, is_ = Architecture.from_hf(saved), Architecture.from_hf(now)
    for field in fields(Architecture):
        before, after = getattr(was, field.name), getattr(is_, field.name)
        if before != after:
            yield f"{CONFIG_FILE}: {field.name} was {before}, is {after}"
    if (before := stop_token_ids(saved)) != (after := stop_token_ids(now)):
        yield f"the tokens that end a response were {before}, are {after}"
    names = {TOKENIZER_FILE, *(_templates(saved) | _templates(now) if chat_template else ())}
    for name in sorted(names):
        if _content(saved / name) != _content(now / name):
            yield f"{name} has other content"


def _templates(hf_dir: Path) -> set[str]:
    return {name for name in companion_files(hf_dir) if "chat_template" in name or name == "tokenizer_config.json"}


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _supersede_target(run_dir: Path, overrides: Sequence[str]) -> None:
    """A target that is given now wins over one that was asked for earlier, in target.json."""
    given = [text for text in overrides if text.partition("=")[0] in _TARGET_SETTINGS]
    if not given or not (run_dir / NAME).is_file():
        return
    asked = read_target(run_dir / NAME)
    if asked is not None and asked.target_entropy is not None:
        write_target(run_dir, None)
        logger.info("%s replaces the target of %g nats asked for in %s", " ".join(given), asked.target_entropy, NAME)
