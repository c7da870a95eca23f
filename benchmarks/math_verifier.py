"""What verifying a maths answer takes: python -m benchmarks.math_verifier [--repeats N]

Every recorded response and form of an answer in tests/tasks/data. First each goes through a verifier process as a run makes it, which
tells those that a limit ends. The others are then timed in this process, in random order, by CPU time, which other programs on the
machine hardly change; what is remembered from the round before is dropped.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from megatron_entropic.tasks import Problem
from megatron_entropic.tasks.math_answers import algebra, make_math_verifier
from megatron_entropic.tasks.math_checker import FACTORY
from megatron_entropic.tasks.verification import Limits, VerifierSpec, VerifierWorker

DATA = Path(__file__).resolve().parent.parent / "tests" / "tasks" / "data"


def answers() -> list[tuple[str, str]]:
    """(known answer, response) pairs."""
    cases = [json.loads(line) for line in (DATA / "math_cases.jsonl").read_text(encoding="utf-8").splitlines()]
    forms = [line.split("\t")[1:] for line in (DATA / "math_forms.tsv").read_text(encoding="utf-8").splitlines()]
    return [(case["answer"], case["response"]) for case in cases] + [(known, rf"\boxed{{{form}}}") for known, form in forms]


def ended_by_limits(pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], float]:
    """The pairs that a limit ended, and the wall-clock seconds that all pairs took."""
    worker = VerifierWorker(VerifierSpec(FACTORY, {}, 0), Limits())
    worker.start()
    started = time.perf_counter()
    limited = [pair for pair in pairs if worker.judge(Problem("", {"answer": pair[0]}), pair[1]).outcome != "scored"]
    worker.close()
    return limited, time.perf_counter() - started


def main() -> None:
    """Prints one row of docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    rounds = parser.parse_args().repeats
    pairs = answers()
    limited, seconds = ended_by_limits(pairs)
    timed = [pair for pair in pairs if pair not in limited]
    make_math_verifier({}, 0).score(Problem("", {"answer": "x+1"}), r"\boxed{1+x}")  # what is loaded with the first expression
    milliseconds = []
    for seed in range(rounds):
        verifier = make_math_verifier({}, 0)
        algebra.forget()
        for known, response in random.Random(seed).sample(timed, len(timed)):
            started = time.process_time()
            verifier.score(Problem("", {"answer": known}), response)
            milliseconds.append((time.process_time() - started) * 1000)
    cuts = statistics.quantiles(milliseconds, n=100)
    print("| answers | median CPU ms | p90 | p99 | slowest | ended by a limit | all, through one process, wall-clock s |")
    print("|---|---|---|---|---|---|---|")
    figures = [f"{value:.2f}" for value in (cuts[49], cuts[89], cuts[98], max(milliseconds))]
    print(f"| {len(pairs)} | {' | '.join(figures)} | {len(limited)} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
