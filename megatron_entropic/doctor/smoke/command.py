"""The whole smoke test: parts, progress, table, JSON, exit code."""

from collections.abc import Sequence
from pathlib import Path

from megatron_entropic.doctor.smoke.page import outcome_text, table_text, write_json
from megatron_entropic.doctor.smoke.runner import SmokeOutcome, run_parts
from megatron_entropic.doctor.smoke.table import PARTS, SmokePart, chosen_parts
from megatron_entropic.errors import ReportedError


class ReportPathError(ReportedError, ValueError):
    """--json names what cannot become a file."""


def smoke(only: Sequence[str] | None, report: Path, parts: Sequence[SmokePart] = PARTS) -> int:
    """Runs the parts named (all when None) and says how each went; the exit code is 1 when one failed.

    `report` gets everything as JSON; beside it the folder NAME.logs gets the parts' logs. Raises UnknownPartError, ReportPathError, and
    OSError when there is no writing there.
    """
    chosen = chosen_parts(only, parts)
    report = report.expanduser()
    if report.is_dir() or not report.name or report == report.with_suffix(".logs"):
        raise ReportPathError(f"--json={report}: the name of a file is needed, such as node17.json, and no folder has it")

    def show(outcome: SmokeOutcome) -> None:
        print(outcome_text(outcome), flush=True)

    outcomes = run_parts(chosen, report.with_suffix(".logs"), lambda line: print(line, flush=True), show)
    print(f"\n{table_text(outcomes)}", flush=True)  # first: a disk that is full by now has no room for the file
    write_json(report, outcomes)
    print(f"{report} has the numbers, {report.with_suffix('.logs')} the logs", flush=True)
    return int(any(outcome.result == "failed" for outcome in outcomes))
