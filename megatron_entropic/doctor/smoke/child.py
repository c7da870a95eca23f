"""The process of one part: `python -m megatron_entropic.doctor.smoke.child MODULE:FUNCTION RESULT_FILE KEPT_FOLDER [MODULE ...]`.

The last ones are the modules that the part needs. What it prints goes to its log; the findings go to RESULT_FILE, which appears whole.
The exit code is 0 when it was written, whatever was found.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.system.atomic_files import write_atomically

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Runs the part and ends at once: destructors of broken groups and servers must not hold the others up."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the runner is gone: nobody waits for this part any more
    target, result, kept, *needs = sys.argv[1:]
    findings = Findings(Path(kept))
    if missing := [name for name in needs if not _is_installed(name)]:
        findings.cannot("everything", f"{', '.join(missing)} cannot be imported: not installed")
    else:
        _run(target, findings)
    write_atomically(Path(result), json.dumps(findings.as_json()).encode())
    sys.stdout.flush()
    os._exit(0)


def _run(target: str, findings: Findings) -> None:
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(findings)
    except Exception as error:  # noqa: BLE001 - the part failed; the others still run
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        findings.failures.append(f"{type(error).__name__}: {lines[0] if lines else 'without a message'}")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


if __name__ == "__main__":
    main()
