"""How fast, and in how much memory, the checkpoint of a large model is converted.

    python -m benchmarks.conversion --help

Makes a Hugging Face directory with the shapes of Llama-3.1-8B, filled with random bytes (16 GB; fewer --layers on a small disk). Then,
one after the other on one machine, each brought to the disk (fsync): `cp` of the weights, import, export, comparison of what came out
with what went in. The rate is the bytes of the weights over the time; memory is the process's highest resident memory, by the kernel.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_entropic.doctor.speed.measure import Device
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.directory import CONFIG_FILE
from megatron_entropic.hf.files import DEFAULT_SHARD_BYTES, write_hf
from megatron_entropic.hf.tables import hf_shapes

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
TOKENIZER = Path(__file__).resolve().parent.parent / "models" / "tiny-decompose"


@dataclass(frozen=True)
class Measured:
    """One program's run."""

    name: str
    seconds: float
    peak_bytes: int


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", type=int, default=32, help="of 32; the checkpoint has 2.1 GB + 0.44 GB a layer, three times on disk"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/conversion"), help="on the disk to be measured; emptied afterwards")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=Path("build/conversion.json"))
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)  # only make the checkpoint
    return parser.parse_args()


def main() -> None:
    args = arguments()
    source, copy, imported, exported = (args.folder / name for name in ("source", "copy", "imported", "exported"))
    if args.make:
        make_checkpoint(source, args.layers)
        return
    shutil.rmtree(args.folder, ignore_errors=True)
    # In a process of its own: memory that this one ever had would be counted as its children's.
    run("make", [sys.executable, "-m", "benchmarks.conversion", "--make", "--folder", str(args.folder), "--layers", str(args.layers)])
    nbytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    tools, workers = [sys.executable, "-m", "checkpoint_tools"], ["--workers", str(args.workers)]
    layout = ["--tp", str(args.tp), "--pp", str(args.pp)]
    measured = [run("cp", ["sh", "-c", f"cp -r '{source}' '{copy}' && sync '{copy}'/*"])]
    shutil.rmtree(copy)
    measured.append(run("import", [*tools, "import", str(source), str(imported), *layout, *workers]))
    measured.append(run("export", [*tools, "export", str(imported), str(exported), *workers]))
    measured.append(run("verify", [*tools, "verify", str(source), str(exported)]))
    shutil.rmtree(args.folder)
    report(args, nbytes, measured)


def make_checkpoint(hf_dir: Path, layers: int) -> None:
    """Writes the checkpoint, tensor by tensor."""
    template = hf_dir.with_name("template")
    template.mkdir(parents=True)
    (template / CONFIG_FILE).write_text(json.dumps({**LLAMA_8B, "num_hidden_layers": layers}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, template / name)
    shapes = hf_shapes(Architecture.from_hf(template))
    write_hf(hf_dir, random_tensors(shapes), template, max_shard_bytes=DEFAULT_SHARD_BYTES // 4)
    os.sync()


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        yield (
            name,
            torch.from_numpy(np.frombuffer(generator.bytes(2 * int(np.prod(shape))), np.int16).copy()).view(torch.bfloat16).view(shape),
        )


def run(name: str, command: Sequence[str]) -> Measured:
    start = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed with exit code {process.returncode}: {' '.join(command)}")
    return Measured(name, seconds, usage.ru_maxrss * 1024)


def report(args: argparse.Namespace, nbytes: int, measured: Sequence[Measured]) -> None:
    """Prints the table and writes the JSON file."""
    copying = measured[0].seconds
    machine = f"{date.today().isoformat()}; {Device('cpu').describe()}; torch {torch.__version__}; load before {os.getloadavg()[2]:.1f}"
    print(f"{machine}\n{nbytes / 1e9:.1f} GB of weights, {args.layers} layers of Llama-3.1-8B; {args.workers} workers\n")
    print("| program | seconds | MB/s | of cp | peak memory, MB |\n|---|---|---|---|---|")
    for case in measured:
        rate = nbytes / case.seconds / 1e6
        print(f"| {case.name} | {case.seconds:.1f} | {rate:.0f} | {copying / case.seconds:.0%} | {case.peak_bytes / 1e6:.0f} |")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    cases = {case.name: {"seconds": case.seconds, "peak_bytes": case.peak_bytes} for case in measured}
    args.json.write_text(json.dumps({"machine": machine, "bytes": nbytes, "layers": args.layers, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
