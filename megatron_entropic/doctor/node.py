"""One node's part of a preflight: `python -m megatron_entropic.doctor.node NAME=ADDRESS ...` as task K of one task a node.

Prints two lines of JSON: first what the node is and has, at once, so that trouble with the network cannot hide it; then whether
it reaches every other node on a port, and how far their clocks are off. Who is the bad node is judged by the launcher.
"""

import argparse
import json
import os
import socket
from pathlib import Path
from typing import Any

from megatron_entropic.doctor.gpus import busy_gpus, inspect_gpus, libraries
from megatron_entropic.doctor.machine import cores, free_bytes, temporary_folder, write_problem
from megatron_entropic.doctor.model import model_fingerprint, model_problem
from megatron_entropic.doctor.reach import Answering, reach_all
from megatron_entropic.doctor.versions import source_fingerprint, versions
from megatron_entropic.system.devices import ask_for_cpu

MARK = "PREFLIGHT "


def main() -> None:
    """Reports on this node; the exit code is 0 whatever was found."""
    parser = argparse.ArgumentParser(prog="python -m megatron_entropic.doctor.node", description=__doc__)
    parser.add_argument("nodes", nargs="+", metavar="NAME=ADDRESS", help="all nodes, in the order of their tasks")
    parser.add_argument("--port", type=int, required=True, help="the port on which nodes reach each other")
    parser.add_argument("--model", type=Path, required=True, help="the run's model directory")
    parser.add_argument("--run-dir", type=Path, required=True, help="the run's folder")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds in which all nodes must have answered")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="the run's parallel.device")
    options = parser.parse_args()
    if options.device == "cpu":
        ask_for_cpu()
    addresses = dict(node.split("=", 1) for node in options.nodes)
    own = list(addresses)[int(os.environ.get("SLURM_PROCID", "0"))]
    try:
        answering: Answering | None = Answering(own, options.port)
        listening = None
    except OSError as error:
        answering, listening = None, f"port {options.port} cannot be listened on: {error.strerror}"
    _print_json(node_facts(options.model, options.run_dir, [listening] if listening else []))
    if answering is not None:
        with answering:
            reached, clock = reach_all(addresses, own, options.port, options.timeout)
        _print_json({"reached": reached, "clock": clock})


def node_facts(model: Path, run_dir: Path, problems: list[str]) -> dict[str, Any]:
    """Facts of this node for the launcher to compare and judge, as JSON types; `problems` are added to."""
    tmp = temporary_folder()
    unreadable = model_problem(model)
    gpus, unusable = inspect_gpus()
    checks = [unreadable, write_problem(run_dir), write_problem(tmp), *unusable, *busy_gpus(gpus)]
    return {
        "host": socket.gethostname(),
        "problems": [*problems, *(check for check in checks if check)],
        "disk": {"run_dir": _disk(run_dir), "tmp": _disk(tmp)},
        "same": {
            **versions(),
            **libraries(),
            "megatron_entropic's source": source_fingerprint(),
            **({} if unreadable else {"the model": model_fingerprint(model)}),
            "the driver": gpus[0].driver if gpus else None,
            "the list of GPUs": ", ".join(gpu.name for gpu in gpus) or None,
        },
        "cores": cores(),
    }


def _disk(path: Path) -> dict[str, Any]:
    return {"path": str(path), "free": free_bytes(path)}


def _print_json(report: dict[str, Any]) -> None:
    print(MARK + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
