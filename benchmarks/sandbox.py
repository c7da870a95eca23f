"""What one program in a sandbox takes: python -m benchmarks.sandbox [--repeats N]

Wall-clock and CPU time beside a bare start of the same Python, by turns; CPU time, of all processes, hardly feels what else the machine
does. One test is a sandbox made, one case and the sandbox ended; each further test of the same answer is a process in that sandbox.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from megatron_entropic.tasks.sandbox import Sandbox, SandboxCase, SandboxLimits, best_mechanism, described

_CASES = 10
LIMITS = SandboxLimits()


def bare_start() -> None:
    """Python's own start, with what the sandbox's process imports."""
    code = "import ctypes, json, resource, select, traceback"
    subprocess.run([sys._base_executable, "-s", "-S", "-P", "-B", "-c", code], check=True)  # type: ignore[attr-defined]


def sandboxed(cases: int) -> None:
    """A program with that many tests."""
    with Sandbox("print(int(input()) + 1)", LIMITS, best_mechanism()) as sandbox:
        for number in range(cases):
            result = sandbox.run(SandboxCase(input=str(number)))
            assert result.output == f"{number + 1}\n", result


def cpu_s() -> float:
    """CPU time of this process and of those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def milliseconds(work: Callable[[], None]) -> tuple[float, float]:
    """(wall-clock, CPU) of one call."""
    started, cpu = time.perf_counter(), cpu_s()
    work()
    return (time.perf_counter() - started) * 1000, (cpu_s() - cpu) * 1000


def main() -> None:
    """Prints the rows of docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="of each")
    repeats = parser.parse_args().repeats
    print(described())
    rows = [[milliseconds(work) for work in (bare_start, lambda: sandboxed(1), lambda: sandboxed(_CASES))] for _ in range(repeats)]
    print("| | median wall-clock ms | p90 | median CPU ms | p90 |\n|---|---|---|---|---|")
    for name, of_row in (
        ("Python's own start", lambda bare, one, many: bare),
        ("sandbox, one test, its end", lambda bare, one, many: one),
        ("each further test", lambda bare, one, many: (many - one) / (_CASES - 1)),
    ):
        columns = [[of_row(*(time[clock] for time in row)) for row in rows] for clock in (0, 1)]
        figures = [f"{value:.1f}" for values in columns for value in (statistics.median(values), statistics.quantiles(values, n=10)[8])]
        print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
