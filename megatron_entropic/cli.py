"""The command line: `megatron-entropic train | new | plan | serve | target | evaluate | report | view | watch | doctor | ...`."""

import argparse
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from megatron_entropic.commands.evaluate import add_evaluate
from megatron_entropic.commands.machine import add_doctor, add_serve, add_slurm_files
from megatron_entropic.commands.new import add_new
from megatron_entropic.commands.plan import add_plan_command
from megatron_entropic.commands.repair import add_repair_command
from megatron_entropic.commands.resume import prepare_resume, resumed_config
from megatron_entropic.commands.run import add_report, add_settings, add_target
from megatron_entropic.commands.sweep import run_sweep
from megatron_entropic.commands.view import add_view, add_watch
from megatron_entropic.config import Config, TrainerConfig
from megatron_entropic.config.control import PRESETS
from megatron_entropic.config.loading import ConfigError, load_config, recipe_names, save_config
from megatron_entropic.config.resume import ALLOW_CHANGE
from megatron_entropic.errors import ReportedError
from megatron_entropic.launch.launcher import given_rank, launch_ranks
from megatron_entropic.launch.worker import ALLOW_FALLBACK, EXIT_FAILED, run_rank
from megatron_entropic.observability.history import record_end, record_start
from megatron_entropic.observability.lost_steps import last_written, lost_steps
from megatron_entropic.system.atomic_files import empty_folder
from megatron_entropic.system.devices import ask_for_cpu
from megatron_entropic.system.folder_lock import TOKEN_VARIABLE, Fence, FolderLock
from megatron_entropic.system.open_files import allow_open_files
from megatron_entropic.system.shipped_files import version_text
from megatron_entropic.system.stop_signal import EXIT_STOPPED

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
"""As a shell reports SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the command's exit code."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        code = options.command(options)
        sys.stdout.flush()  # here, so that a closed pipe is met inside this block
        sys.exit(code)
    except BrokenPipeError as error:
        if error.filename is None and _reader_is_gone():
            sys.exit(EXIT_READER_GONE)
        raise
    except (ReportedError, ValueError, OSError) as error:
        print(f"megatron-entropic: error: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        print("megatron-entropic: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _reader_is_gone() -> bool:
    """Whether standard output was closed by its reader, such as `head`; what is left to write goes nowhere then."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in watch.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options and overrides may stand in any order (argparse alone takes no override after an option)."""
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        parser.exit()
    options, rest = parser.parse_known_args(arguments)
    takes_overrides = hasattr(options, "overrides")
    if unknown := [argument for argument in rest if argument.startswith("-") or not takes_overrides]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_hint(unknown) if takes_overrides else ''}")
    if takes_overrides:
        options.overrides += rest
    return options


def _hint(unknown: Sequence[str]) -> str:
    """Hint for a setting that was given as an option."""
    settings = [argument.lstrip("-") for argument in unknown if "." in argument.partition("=")[0]]
    return f"; settings have no dashes and one '=': {' '.join(s if '=' in s else f'{s}=VALUE' for s in settings)}" if settings else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-entropic",
        description="RL training of language models whose entropy stays where you want it.",
        epilog="Start with: megatron-entropic train quickstart",
    )
    parser.add_argument("--version", action="version", version=version_text(), help="show the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="run a recipe",
        description="Runs a recipe. Starts its own ranks on this machine, or is one of them under torchrun or srun.",
        epilog="Example: megatron-entropic train quickstart control.target_entropy=0.8 trainer.steps=100 run.name=cooler\n"
        f"control.preset={'|'.join(PRESETS)} sets what the authors' code does; overrides after it win.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("source", metavar="RECIPE", help=f"a recipe ({', '.join(recipe_names())}), a recipe file, or a config.yaml")
    train.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="settings to change; `megatron-entropic settings` lists all"
    )
    train.add_argument(
        "--resume", action="store_true", help="resume the run in the folder RECIPE (a run folder) from its latest checkpoint"
    )
    train.add_argument(
        ALLOW_FALLBACK,
        action="store_true",
        help="with --resume: when the latest checkpoint is damaged, resume from the newest intact one",
    )
    train.add_argument(
        ALLOW_CHANGE,
        action="store_true",
        help="with --resume: also with other settings of the method (batch.*, task.*, control.kind, trainer.seed)",
    )
    train.add_argument("--overwrite", action="store_true", help="delete the run's folder first if it holds an earlier run")
    train.add_argument(
        "--sweep", action="store_true", help="one run for every combination of settings with commas, such as trainer.seed=0,1,2"
    )
    train.add_argument("--dry-run", action="store_true", help="with --sweep: list the runs and how far each is")
    train.set_defaults(command=_train)

    add_new(commands)

    add_plan_command(commands)

    add_target(commands)

    add_evaluate(commands)
    add_serve(commands)
    add_report(commands)
    add_view(commands)
    add_watch(commands)
    add_repair_command(commands)
    add_doctor(commands)
    add_slurm_files(commands)
    add_settings(commands)

    return parser


def _train(options: argparse.Namespace) -> int:
    if options.sweep:
        return run_sweep(options)
    if options.dry_run:
        raise ConfigError("--dry-run goes with --sweep; `megatron-entropic plan RECIPE` looks at one run before it starts")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell script's background job: Ctrl-C's signal still means stop
        signal.signal(signal.SIGINT, signal.default_int_handler)
    flags = [flag for flag, given in ((ALLOW_FALLBACK, options.allow_fallback), (ALLOW_CHANGE, options.allow_change)) if given]
    if flags and not options.resume:
        raise ConfigError(f"{' and '.join(flags)} go with --resume: only a resumed run has a checkpoint")
    cfg = _settings_of_run(options)
    if cfg.parallel.device == "cpu":
        ask_for_cpu(os.environ)
    allow_open_files(cfg.parallel.world_size, servers=cfg.rollout.engine == "vllm")
    rank = given_rank(os.environ)
    if rank not in (None, 0):
        return run_rank(cfg, flags)
    if not options.resume:
        _check_start(cfg)
    with FolderLock(cfg.run_dir, "the run") as lock:
        if options.resume:
            has_checkpoint = prepare_resume(cfg, options.overrides, allow_change=options.allow_change)
            _check_start(cfg, weights=not has_checkpoint)
            save_config(cfg, cfg.run_dir / "config.yaml")
        else:
            _prepare_run_dir(cfg, lock, overwrite=options.overwrite)
        os.environ[TOKEN_VARIABLE] = lock.token
        record_start(cfg.run_dir, sys.argv[1:])
        before = last_written(cfg.run_dir)
        if rank is None:
            code = launch_ranks(
                cfg.run_dir / "config.yaml",
                cfg.parallel.world_size,
                cfg.run_dir / "logs",
                grace_s=cfg.checkpoint.grace_s,
                arguments=flags,
                lock=lock.descriptor,
            )
        else:
            code = run_rank(cfg, flags)
        if not Fence.of_this_run(cfg.run_dir).is_open():  # rank 0 has said who owns the run now
            return code or EXIT_FAILED
        _conclude(cfg, code, trained=last_written(cfg.run_dir) != before)
    return code


def _conclude(cfg: Config, code: int, *, trained: bool) -> None:
    """Records and reports the end of a run with `code`; nothing of an earlier start when this one `trained` nothing."""
    run_dir = cfg.run_dir
    try:
        record_end(run_dir, code)
        if code and not trained:
            return
        if code != EXIT_STOPPED:  # then there is no time for a report
            _summarise(run_dir, cfg.trainer)
    except OSError as error:  # a full disk, which has ended the run already: its exit code stays
        if not code:
            raise
        print(f"megatron-entropic: error: {error}", file=sys.stderr)
    if code not in (0, EXIT_STOPPED) and (lost := lost_steps(run_dir)):
        print(lost, file=sys.stderr)


def _settings_of_run(options: argparse.Namespace) -> Config:
    source = Path(options.source).expanduser()
    if options.resume:
        return resumed_config(source, options.overrides)
    if (source / "config.yaml").is_file():
        raise ConfigError(f"{source} is the folder of a run; resume it by `megatron-entropic train {quote(str(source))} --resume`")
    return load_config(options.source, options.overrides)


def _check_start(cfg: Config, *, weights: bool = True) -> None:
    """Refuses a run that cannot work; `weights`: whether those of its base model are needed."""
    from megatron_entropic.start_checks.start import check_start

    for remark in check_start(cfg, weights=weights):
        logging.info("%s", remark)


def _prepare_run_dir(cfg: Config, lock: FolderLock, *, overwrite: bool) -> None:
    run_dir = cfg.run_dir
    if (run_dir / "config.yaml").exists() and (overwrite or _has_begun(run_dir)):
        if not overwrite:
            raise ConfigError(
                f"{run_dir} holds an earlier run; resume it by `megatron-entropic train {quote(str(run_dir))} --resume`, "
                "choose another run.name or run.dir, or pass --overwrite to delete it"
            )
        empty_folder(run_dir, keep=lock.files)
    save_config(cfg, run_dir / "config.yaml")


def _has_begun(run_dir: Path) -> bool:
    """Whether a run came as far as to leave something: one that was refused by its ranks may be started again with other settings."""
    metrics = run_dir / "metrics.jsonl"
    trained = metrics.exists() and metrics.stat().st_size > 0
    return trained or any(any(run_dir.glob(pattern)) for pattern in ("rollouts/step-*", "checkpoints/*"))


def _summarise(run_dir: Path, trainer: TrainerConfig) -> None:
    """After a run, whole or not: the report, and its headline numbers on the terminal. Nothing before the first step."""
    metrics = run_dir / "metrics.jsonl"
    if not metrics.exists() or not metrics.stat().st_size:
        return
    from megatron_entropic.observability.summary import summarise

    report = f"megatron-entropic report {quote(str(run_dir))}  draws it"
    if trainer.report:
        from megatron_entropic.observability.report import write_report  # here: it takes a second to import

        report = str(write_report(run_dir))
    summary = summarise(run_dir)
    print(f"\n{summary.steps_done} of {trainer.steps} steps done.")
    if summary.signal is not None:
        print(f"signal  {summary.signal}")
    if summary.tracking_error is not None:
        print(
            f"entropy {summary.steered_last:.3f} nats (mean of the last third), target {summary.target_last:.3f}, "
            f"tracking error {summary.tracking_error:+.3f}"
        )
    if summary.control is not None:
        print(f"control {summary.control}")
    if summary.reward_first is not None:
        print(f"reward  {summary.reward_first:.3f} at the first step, {summary.reward_last:.3f} in the last third")
    if (run_dir / "hf").is_dir():
        print(f"model   {run_dir / 'hf'}  (Hugging Face)")
    print(f"report  {report}")


if __name__ == "__main__":
    main()
