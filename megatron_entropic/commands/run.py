"""`megatron-entropic target`, `report` and `settings`: what is asked of runs and settings, and starts nothing."""

import argparse
from pathlib import Path
from typing import Any

from megatron_entropic.config.reference import settings_markdown, settings_reference


def add_target(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `target`."""
    target = commands.add_parser(
        "target",
        allow_abbrev=False,
        help="show or change the entropy target of a run in progress",
        description="Asks a run in progress to steer to another entropy from its next step on; without NATS shows where it is.",
        epilog="Example: megatron-entropic target runs/quickstart 0.7",
    )
    target.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    asked = target.add_mutually_exclusive_group()
    asked.add_argument("nats", type=float, nargs="?", metavar="NATS", help="the new target: nats of the entropy that the run steers by")
    asked.add_argument("--clear", action="store_true", help="go back to the target of the settings and their schedule")
    asked.add_argument("--show", action="store_true", help="show the target, what was asked for, and the entropy (the default)")
    target.set_defaults(command=_target)


def add_report(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `report`."""
    report = commands.add_parser("report", allow_abbrev=False, help="write report.html and plots of a run", description=_report.__doc__)
    report.add_argument(
        "run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="a run; several, or a sweep's folder, are compared in one page"
    )
    report.add_argument("--compare", type=Path, nargs="+", metavar="OTHER_RUN", help="the same, with the page in RUN_DIR")
    report.set_defaults(command=_report)


def add_settings(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `settings`."""
    settings = commands.add_parser("settings", allow_abbrev=False, help="list every setting with its default and meaning")
    settings.add_argument("section", nargs="?", help="only this section, for example control")
    settings.add_argument("--markdown", action="store_true", help="as the page docs/settings.md")
    settings.set_defaults(command=_settings)


def _target(options: argparse.Namespace) -> int:
    """Shows the target of a run, after asking it for another when one is given."""
    from megatron_entropic.commands.target import describe_target, request_target

    if options.clear or options.nats is not None:
        request_target(options.run_dir, options.nats)
    print(describe_target(options.run_dir))
    return 0


def _settings(options: argparse.Namespace) -> int:
    """Prints the reference of all settings."""
    print(settings_markdown() if options.markdown else settings_reference(options.section))
    return 0


def _report(options: argparse.Namespace) -> int:
    """Writes RUN_DIR/report.html and RUN_DIR/plots. Of several runs only comparison.html, in the folder that holds them all: a table
    of the settings in which they differ, their final figures and links to their reports. With --compare that page is in RUN_DIR."""
    from megatron_entropic.observability.comparison import runs_in, write_comparison, write_overview
    from megatron_entropic.observability.report import write_report

    given: list[Path] = options.run_dirs
    if options.compare:
        if len(given) > 1:
            raise ValueError(f"report: --compare goes with one RUN_DIR, and {len(given)} were given; without it they are compared")
        print(write_comparison(given[0], options.compare))
        return 0
    runs, neither = runs_in(given)
    if given == runs[:1] or not runs:
        print(write_report(given[0]))
        return 0
    for path in neither:
        print(f"{path}: left out, it is not the folder of a run")
    print(write_overview(runs))
    return 0
