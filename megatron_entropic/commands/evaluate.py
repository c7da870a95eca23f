"""`megatron-entropic evaluate`: scores a model on a task."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.commands.evaluate_sets import add_set_options, run_compare, run_sets
from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config, override
from megatron_entropic.hf.architectures import Architecture


def add_evaluate(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `evaluate`."""
    evaluate = commands.add_parser(
        "evaluate",
        allow_abbrev=False,
        help="score a model on a task: avg@k, pass@k, diversity",
        description="Samples a model on problems of a task and scores it with the task's verifier. A run is scored on its own task: on "
        "problems that it was not trained on where there are such, and it says where there are none. For another model name the task.",
        epilog="Examples: megatron-entropic evaluate runs/quickstart --prompts 256   (task and engine as in that run)\n"
        "  megatron-entropic evaluate models/Qwen3-8B task.name=math task.options.path=data/aime.jsonl task.chat_template=true "
        "rollout.max_new_tokens=8192 --samples 32\n"
        "  megatron-entropic evaluate runs/mine task.options.path=data/test.jsonl --temperature 0   (greedy, on a file of its own)\n"
        "  megatron-entropic evaluate runs/mine --sets aime24,math500,held=data/test.jsonl --samples 8\n"
        "  megatron-entropic evaluate --compare runs/entropic runs/grpo   (a paired test on what their validation wrote)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument(
        "model", type=Path, nargs="?", metavar="MODEL", help="a run folder (its hf/ is scored), or a Hugging Face directory"
    )
    evaluate.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="settings to change, such as rollout.engine=local"
    )
    evaluate.add_argument("--recipe", help="all settings of a recipe, its task too, for a MODEL that is no run folder")
    evaluate.add_argument("--prompts", type=int, metavar="N", help="number of problems (default: 256, or all of a smaller file)")
    evaluate.add_argument("--samples", type=int, metavar="K", help="responses to each (default: batch.samples_per_prompt; greedy: 1)")
    evaluate.add_argument("--temperature", type=float, metavar="T", help="of sampling; 0 is greedy (default: rollout.temperature)")
    evaluate.add_argument("--out", type=Path, help="also write the scores to this JSON file (default for a run: evaluation.json in it)")
    add_set_options(evaluate)
    evaluate.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    """Scores MODEL and prints the scores."""
    for name in ("prompts", "samples"):
        if (given := getattr(options, name)) is not None and given < 1:
            raise ConfigError(f"--{name}={given}: at least 1 is needed")
    if options.compare:
        if options.model is not None:
            options.overrides.insert(0, str(options.model))
        return run_compare(options, lambda model: _settings(model, options.recipe, options.overrides, needs_task=False)[0])
    if options.model is None:
        raise ConfigError("evaluate what? Name a run folder or a Hugging Face directory, or two by --compare")
    model = options.model.expanduser()
    if options.sets:
        return run_sets(options, model, lambda model: _settings(model, options.recipe, options.overrides, needs_task=False)[0])
    cfg, trained = _settings(model, options.recipe, _overrides(options))

    from megatron_entropic.evaluation.evaluate import evaluate
    from megatron_entropic.start_checks.model import check_model

    check_model(cfg)
    evaluation = evaluate(cfg, options.prompts, trained)
    print(evaluation)
    out = options.out.expanduser() if options.out else model / "evaluation.json" if trained else None
    if out is not None:
        evaluation.save(out)
        print(f"written to {out}")
    return 0


def _overrides(options: argparse.Namespace) -> list[str]:
    """The command line's options as settings. Raises ConfigError for several greedy samples: they are all the same."""
    if options.temperature == 0 and (options.samples or 1) > 1:
        raise ConfigError(
            f"--samples={options.samples}: with --temperature 0 (greedy) all responses to a problem are the same; ask for 1"
        )
    overrides = list(options.overrides)
    if options.temperature is not None:
        overrides.append(override("rollout.temperature", options.temperature))
    if options.samples is not None:
        overrides.append(override("batch.samples_per_prompt", options.samples))
    return overrides


def _settings(model: Path, recipe: str | None, overrides: Sequence[str], *, needs_task: bool = True) -> tuple[Config, Config | None]:
    """The settings of the evaluation, and those of the run when `model` is one's folder. Raises ConfigError without a task."""
    saved = model / "config.yaml"
    trained = load_config(saved) if saved.is_file() else None
    source = saved if trained else recipe
    hf_path = model / "hf" if trained else model
    logs = model / "evaluation" if trained else Path("runs/evaluate")  # not the run's own: it may still be running
    own = [override("model.hf_path", hf_path), override("run.dir", logs)]
    cfg = load_config(source, [*overrides, *own])
    if trained is not None and not hf_path.is_dir():
        raise ConfigError(
            f"{hf_path} is not there: the run has not ended, or has trainer.export_hf=false; write it from its latest checkpoint by "
            f"python -m checkpoint_tools export {quote(str(model))} {quote(str(hf_path))}"
        )
    Architecture.from_hf(model_folder(cfg.model.hf_path).hf_dir)  # a model that is not there is the first thing to say
    if needs_task and trained is None and recipe is None and not any(word.startswith("task.name=") for word in overrides):
        raise ConfigError(
            f"{model}: on which task? It is no run folder, so name one: task.name=math task.options.path=FILE, task.name=decompose, "
            "or --recipe RECIPE for all of a recipe's settings"
        )
    if model_folder(cfg.model.hf_path).is_distributed:
        raise ConfigError(
            f"{hf_path}: a distributed checkpoint; make it a model first: "
            f"python -m checkpoint_tools export {quote(str(hf_path))} OUT_DIR"
        )
    return cfg, trained
