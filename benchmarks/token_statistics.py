"""Time, memory and error of the token statistics and their competitors, on a CPU or a GPU: one table, one JSON file.

    python -m benchmarks.token_statistics --help

Each time is the median of --repeats runs that take turns. "of copy": the bytes that any implementation must move (forward: the
logits once; backward: logits and gradient once) per second, against a copy's in the same run. "of GEMMs": the time of the four
products of an output layer alone, in the same run, against this case's. Peak memory is that of forward and backward beyond the
inputs, gradients included (doctor/speed/measure.py); "without gradients" leaves out the inputs' gradients, which every
implementation returns. Other projects' cases run where their package is installed (docs/performance.md says how); elsewhere, and where
they fail, the table says why. Errors are against float64 on --check-tokens of the tokens, the gradient's for the same loss.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from megatron_entropic.doctor.speed.cases import KernelCase, cases, four_gemms, is_linear, loss
from megatron_entropic.doctor.speed.float64 import float64_errors
from megatron_entropic.doctor.speed.measure import Device, copy_bandwidth, median_in_turn
from megatron_entropic.doctor.speed.problem import KernelProblem
from megatron_entropic.doctor.speed.timing import steps_of, warm_up

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PACKAGES = ("torch", "triton", "numpy", "megatron-core", "verl", "liger-kernel")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=152_064)
    parser.add_argument("--hidden", type=int, default=1024, help="hidden size of the output layer's cases")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--clamp", type=float, default=0.4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check-tokens", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--groups", nargs="+", help="only these groups of cases, for example 'output layer'")
    parser.add_argument("--json", type=Path, default=Path("build/token_statistics.json"))
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # "group/name": print its peak memory and leave
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = Device(args.device)
    if args.peak_of:
        print(peak_bytes(args, device))
        return
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": device.describe(),
        "load_before": os.getloadavg()[0],
        "versions": versions(),
        "shape": {"tokens": args.tokens, "vocab": args.vocab, "hidden": args.hidden, "clamp": args.clamp},
        "repeats": args.repeats,
        "rows": [],
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    for dtype in args.dtypes:
        for group in groups(args):
            report["rows"] += measure_group(args, device, dtype, group)
            write_atomically(args.json, json.dumps(report, indent=1) + "\n")  # after every group, so that little is lost
    print(f"\n{report['date']}, {report['machine']}, {report['versions']}, {report['shape']}; load before: {report['load_before']}\n")
    print(markdown(report["rows"]))


def versions() -> dict[str, str]:
    found = reversed(list(metadata.distributions()))  # the first on the path is the one that is imported
    there = {distribution.name.lower().replace("_", "-"): distribution.version for distribution in found}
    return {"python": sys.version.split()[0]} | {name: there[name] for name in PACKAGES if name in there}


def write_atomically(path: Path, text: str) -> None:
    """`path` has its old content or all of the new."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def groups(args: argparse.Namespace) -> list[str]:
    known = list(dict.fromkeys(case.group for case in cases(args.device)))
    if unknown := set(args.groups or ()) - set(known):
        raise SystemExit(f"--groups: {sorted(unknown)} not among {known}")
    return [group for group in known if not args.groups or group in args.groups]


def problem_of(args: argparse.Namespace, dtype: str, linear: bool, tokens: int | None = None) -> KernelProblem:
    return KernelProblem.make(tokens or args.tokens, args.vocab, args.hidden, DTYPES[dtype], args.device, args.clamp, linear)


def measure_group(args: argparse.Namespace, device: Device, dtype: str, group: str) -> list[dict[str, Any]]:
    """One row a case, the cases of a group timed in turns."""
    members = [case for case in cases(args.device) if case.group == group]
    rows: list[dict[str, Any]] = [{"dtype": dtype, "group": group, "case": case.name, "missing": case.missing} for case in members]
    linear = is_linear(members[0])
    problem = problem_of(args, dtype, linear)
    steps: dict[str, Any] = {}
    for row, case in zip(rows, members, strict=True):
        row["missing"] = row["missing"] or warm_up(case, problem)
        if not row["missing"]:
            steps |= steps_of(case, problem)
    if linear:
        steps |= {f"GEMMs/{name}": step for name, step in four_gemms(problem).items()}
    median = median_in_turn(steps, device, args.repeats)
    bandwidth = copy_bandwidth(device, args.repeats)
    logits_bytes = args.tokens * args.vocab * DTYPES[dtype].itemsize
    gradient_bytes = sum(x.numel() * x.element_size() for x in problem.leaves)
    del problem
    for row, case in zip(rows, members, strict=True):
        if row["missing"]:
            continue
        forward, backward = median[f"{case.name}/forward"], median[f"{case.name}/backward"]
        row |= {"forward_s": forward, "backward_s": backward, "total_s": forward + backward}
        if linear:
            row["of_gemms"] = (median["GEMMs/forward"] + median["GEMMs/backward"]) / (forward + backward)
            row["gemm_flops_per_s"] = 8 * args.tokens * args.vocab * args.hidden / (median["GEMMs/forward"] + median["GEMMs/backward"])
        else:
            row["of_copy_forward"] = logits_bytes / forward / bandwidth
            row["of_copy_backward"] = 2 * logits_bytes / backward / bandwidth
        row["peak_bytes"] = measure_peak(args, device, case, dtype)
        row["peak_without_gradients_of_logits"] = (row["peak_bytes"] - gradient_bytes) / logits_bytes
        row |= errors(args, case, dtype)
    if linear:
        seconds = {"forward_s": median["GEMMs/forward"], "backward_s": median["GEMMs/backward"]}
        rows.append({"dtype": dtype, "group": group, "case": "the four GEMMs alone", **seconds, "total_s": sum(seconds.values())})
    for row in rows:
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def measure_peak(args: argparse.Namespace, device: Device, case: KernelCase, dtype: str) -> int:
    """Peak memory; on a CPU in a process of its own, where nothing that was freed before is there to be used again."""
    own = argparse.Namespace(**{**vars(args), "dtypes": [dtype], "peak_of": f"{case.group}/{case.name}"})
    if device.is_gpu:
        return peak_bytes(own, device)
    options = [f"--{name}={getattr(own, name)}" for name in ("tokens", "vocab", "hidden", "clamp", "device")]
    command = [sys.executable, "-m", "benchmarks.token_statistics", *options, "--dtypes", dtype, f"--peak-of={own.peak_of}"]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak_bytes(args: argparse.Namespace, device: Device) -> int:
    (case,) = (case for case in cases(args.device) if f"{case.group}/{case.name}" == args.peak_of)
    # Libraries load their code, threads start, and what torch.compile makes for one number of tokens is made.
    tokens, vocab = (args.tokens, 256) if case.package else (8, 4096)
    warm = problem_of(argparse.Namespace(**{**vars(args), "vocab": vocab}), args.dtypes[0], is_linear(case), tokens=tokens)
    torch.autograd.backward(loss(case.forward(warm)))
    problem = problem_of(args, args.dtypes[0], is_linear(case))
    return device.peak_bytes(lambda: torch.autograd.backward(loss(case.forward(problem))))


def errors(args: argparse.Namespace, case: KernelCase, dtype: str) -> dict[str, float]:
    """Those of float64_errors, on a few of the tokens."""
    return float64_errors(case, problem_of(args, dtype, is_linear(case), tokens=args.check_tokens))


def markdown(rows: list[dict[str, Any]]) -> str:
    head = [
        "dtype",
        "computes",
        "case",
        "forward ms",
        "backward ms",
        "of copy, fwd / bwd",
        "of GEMMs",
        "peak MB",
        "without gradients, of logits",
    ]
    lines = [[*head, "value error", "gradient error"]]
    for row in rows:
        line = [row["dtype"], row["group"], row["case"]]
        if row.get("missing"):
            lines.append([*line, row["missing"], *[""] * 7])
            continue
        copies = f"{row['of_copy_forward']:.0%} / {row['of_copy_backward']:.0%}" if "of_copy_forward" in row else ""
        line += [f"{1000 * row['forward_s']:.0f}", f"{1000 * row['backward_s']:.0f}", copies]
        line += [f"{row['of_gemms']:.0%}" if "of_gemms" in row else ""]
        if "peak_bytes" in row:
            line += [f"{row['peak_bytes'] / 1e6:.0f}", f"{row['peak_without_gradients_of_logits']:.1%}"]
            line += [f"{row['value_error']:.1e}", f"{row['gradient_error']:.1e}"]
        lines.append(line + [""] * (11 - len(line)))
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([table[0], "|---" * 11 + "|", *table[1:]])


if __name__ == "__main__":
    main()
