"""Runs the lab: python -m recipes.lab [--only PATTERN] [--jobs N]; with a pretrained model: python -m recipes.lab --model NAME."""

import argparse
import multiprocessing
import time
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from recipes.lab import real_model
from recipes.lab.cases import Case, all_cases
from recipes.lab.real_model_runs import PLANS
from recipes.lab.run import load_result, run_case


def main() -> None:
    """The lab of tiny models, or with --model that of a pretrained one, which has options of its own."""
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chosen.add_argument("--model", choices=sorted(PLANS))
    options, rest = chosen.parse_known_args()
    if options.model is None:
        tiny_lab()
    else:
        real_model.main(options.model, rest)


def tiny_lab() -> None:
    """Runs what has no result yet; finished cases are kept, so the lab can be stopped and started again at any time."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.lab",
        description="Trains the tiny models under every method of entropy control and writes a table and figures.",
        epilog="Example: nohup python -m recipes.lab --jobs 2 &    Later: python -m recipes.lab --report docs",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/lab"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time, one core each (default: %(default)s)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases whose name matches, such as 'decompose-on-*-0'")
    parser.add_argument("--list", action="store_true", help="print the cases and whether they are done, and stop")
    parser.add_argument("--report", type=Path, metavar="DOCS", help="only write the table and figures of what is done under DOCS")
    parser.add_argument("--model", choices=sorted(PLANS), help="instead a pretrained model, for hours: --model NAME --help")
    options = parser.parse_args()
    cases = all_cases(options.only)
    if options.list:
        for case in cases:
            print(f"{'done' if load_result(options.out / case.name) else '-':<5} {case.name}")
        return
    if options.report is not None:
        from recipes.lab.lab_page import write_lab_page

        write_lab_page(options.out, options.report)
        return
    run_all(cases, options.out, options.jobs)


def run_all(cases: list[Case], out: Path, jobs: int) -> None:
    """Runs the unfinished cases, `jobs` at a time, each in a forked process: the imports are paid once."""
    waiting = [case for case in cases if load_result(out / case.name) is None]
    total, failed = len(waiting), 0
    context = multiprocessing.get_context("fork")
    running: list[tuple[ForkProcess, Case, float]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop(0)
            process = context.Process(target=run_case, args=(case, out), daemon=True)
            process.start()
            running.append((process, case, time.monotonic()))
        ended = wait([process.sentinel for process, _, _ in running])
        for process, case, start in [entry for entry in running if entry[0].sentinel in ended]:
            running.remove((process, case, start))
            process.join()
            failed += process.exitcode != 0
            done = total - len(waiting) - len(running)
            state = "done" if process.exitcode == 0 else f"FAILED, see {out / case.name}/progress.txt"
            print(f"{done:4d}/{total}  {time.monotonic() - start:5.0f} s  {case.name}  {state}", flush=True)
    if failed:
        raise SystemExit(f"{failed} cases failed; run the lab again to repeat them")


if __name__ == "__main__":
    main()
