"""The smoke test as text, while it runs and at its end, and as JSON."""

import datetime
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_entropic.doctor.smoke.findings import row_text
from megatron_entropic.doctor.smoke.runner import SmokeOutcome
from megatron_entropic.doctor.versions import source_fingerprint, versions
from megatron_entropic.system.atomic_files import write_atomically


def outcome_text(outcome: SmokeOutcome) -> str:
    """All about one part, indented; of a failed one the last lines of its log, and where that lies."""
    lines = [f"    {row_text(what, values)}" for what, values in outcome.rows]
    lines += [f"    not tried: {what}: {why}" for what, why in outcome.untried]
    lines += [f"    FAILED: {failure}" for failure in outcome.failures]
    if outcome.result == "failed":
        lines += [f"    | {line}" for line in outcome.last_lines]
        lines.append(f"    the whole log: {outcome.log}")
    return "\n".join([*lines, f"    {outcome.result} after {outcome.seconds:.0f} s"])


def table_text(outcomes: Sequence[SmokeOutcome]) -> str:
    """A line a part, and a last one that names those that failed."""
    width = max(len(outcome.part.name) for outcome in outcomes) + 2
    lines = [f"{'part':<{width}}result       time  what it shows"]
    for outcome in outcomes:
        lines.append(f"{outcome.part.name:<{width}}{outcome.result:<9}{outcome.seconds:6.0f} s  {outcome.part.shows}")
        lines += [f"{'':<{width + 19}}not tried: {what}: {why}" for what, why in outcome.untried]
    failed = [outcome.part.name for outcome in outcomes if outcome.result == "failed"]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "every part that could be tried passed"
    return "\n".join([*lines, verdict])


def write_json(path: Path, outcomes: Sequence[SmokeOutcome]) -> None:
    """Everything found, in `path`, which appears whole or not at all."""
    failed = [outcome.part.name for outcome in outcomes if outcome.result == "failed"]
    page: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": socket.gethostname(),
        "source": source_fingerprint(),
        "versions": versions(),
        "failed": failed,
        "parts": [_part(outcome) for outcome in outcomes],
    }
    write_atomically(path, (json.dumps(page, indent=1) + "\n").encode())


def _part(outcome: SmokeOutcome) -> dict[str, Any]:
    return {
        "name": outcome.part.name,
        "shows": outcome.part.shows,
        "result": outcome.result,
        "seconds": round(outcome.seconds, 1),
        "limit_s": outcome.part.limit_s,
        "found": dict(outcome.rows),
        "untried": dict(outcome.untried),
        "failures": list(outcome.failures),
        "last_lines": list(outcome.last_lines),
        "log": str(outcome.log),
    }
