"""What a step costs on the host between generation and update: rollouts are recorded, dealt to the ranks and packed.

    python -m benchmarks.host_work [--rollouts 4096] [--tokens 8192] [--data 2 | --tensor 2]

Two processes are ranks over gloo. Rank 0 makes rollouts of random tokens (not timed); then, while a thread records them, the ranks
deal them and pack every micro-batch. Memory is the growth of each rank's highest resident memory over its size before the rollouts
were made, by the kernel, so rank 0's includes the rollouts; "of a core" is the processor time of all its threads, which a busy machine
stretches least. The limits: for dealing and packing, the bytes that must be written over
the speed of copying memory; for recording, a plain write and sync of the recorded bytes.
"""

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_entropic.config import BatchConfig, Config, ParallelConfig
from megatron_entropic.distributed.parallel import Parallel, initialize_parallel, shutdown
from megatron_entropic.distributed.rank_zero import meet
from megatron_entropic.doctor.speed.measure import Device
from megatron_entropic.policy.batching import Sample, build_micro_batch, plan_micro_batches
from megatron_entropic.policy.dealing import deal
from megatron_entropic.rollout.recording import RolloutWriter, file_name
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.tasks.task import Problem

PROMPT_TOKENS = 512
SAMPLES_PER_PROMPT = 8
VOCABULARY = 150_000
CHARACTERS_PER_TOKEN = 4
_PACKED_BYTES = 3 * 8 + 8 + 2 * 4 + 1
"""Of one position: tokens, positions, targets, index, advantage, log-prob and mask."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=8192, help="response tokens of each rollout")
    parser.add_argument("--data", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the record is written")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args(arguments)
    results = run(options.rollouts, options.tokens, data=options.data, tensor=options.tensor, folder=options.folder)
    layout = f"data {options.data} x tensor {options.tensor}"
    layout = f"data {options.data} x tensor {options.tensor}"
    machine = f"{date.today()}; {Device('cpu').describe()}; torch {torch.__version__}; load before {os.getloadavg()[2]:.1f}"
    print(f"{machine}\n{options.rollouts} rollouts of {options.tokens} tokens, {layout}")
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def run(rollouts: int, tokens: int, *, data: int, tensor: int, folder: Path) -> list[dict[str, float]]:
    """The measurements of each rank, in rank order."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = data * tensor
    results: Any = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(rank, port, rollouts, tokens, data, tensor, folder, results), daemon=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=600) for _ in ranks)
    for process in ranks:
        process.join()
    return [found[rank] for rank in range(world)]


def _rank(rank: int, port: int, rollouts: int, tokens: int, data: int, tensor: int, folder: Path, results: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(data * tensor), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    cfg = Config(
        parallel=ParallelConfig(data=data, tensor=tensor),
        batch=BatchConfig(
            prompts_per_step=rollouts // SAMPLES_PER_PROMPT,
            samples_per_prompt=SAMPLES_PER_PROMPT,
            max_tokens_per_micro_batch=2 * (PROMPT_TOKENS + tokens),
        ),
    )
    parallel = initialize_parallel(cfg.parallel, 0)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        results.put((rank, _measured(cfg, parallel, rollouts, tokens, Path(scratch))))
    shutdown()


def _measured(cfg: Config, parallel: Parallel, count: int, tokens: int, folder: Path) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is the present size
    before = _resident_bytes("VmRSS")
    rollouts = synthetic(count, tokens) if parallel.rank == 0 else []
    samples = [Sample(rollout.prompt_ids, rollout.response_ids, rollout.log_probs, 0.5) for rollout in rollouts]
    writer = RolloutWriter(folder)
    meet(parallel, "the rollouts")
    start, busy = time.perf_counter(), time.process_time()
    if rollouts:
        problems = {rollout.prompt_index: Problem("p") for rollout in rollouts}
        writer.begin(0, rollouts, problems, [1.0] * count)
    batch, deal_s = _timed(lambda: deal(cfg.control, cfg.batch, parallel, samples))
    positions, pack_s = _timed(lambda: _pack_all(cfg, parallel, batch.samples, batch))
    _, wait_s = _timed(writer.close)
    found = {"deal_s": deal_s, "pack_s": pack_s, "left_s": wait_s}
    found |= {"all_s": time.perf_counter() - start, "cpu_s": time.process_time() - busy}
    found["memory_mb"] = (_resident_bytes("VmHWM") - before) / 1e6
    meet(parallel, "the measurements")
    copy = _copy_bytes_per_s()
    found |= {"pack_limit_s": positions * _PACKED_BYTES / copy, "deal_limit_s": 2 * 8 * count * tokens / cfg.parallel.data / copy}
    if rollouts:
        path = folder / file_name(0)
        found["recorded_mb"] = path.stat().st_size / 1e6
        _, found["record_s"] = _timed(lambda: RolloutWriter(folder).write(0, rollouts, problems, [1.0] * count))
        found["record_limit_s"] = _timed(lambda: _write_plainly(folder / "plain", path.read_bytes()))[1]
    return found


def _pack_all(cfg: Config, parallel: Parallel, samples: Sequence[Any], batch: Any) -> int:
    plan = plan_micro_batches(
        [sample.length for sample in samples],
        data_parallel=parallel.dp_size,
        max_tokens=cfg.batch.max_tokens_per_micro_batch,
    )
    packed = (build_micro_batch(batch, indices, device=parallel.device) for indices in plan[parallel.dp_rank])
    return sum(micro_batch.mask_T.numel() for micro_batch in packed)


def synthetic(count: int, tokens: int) -> list[Rollout]:
    """Rollouts of random tokens, ids drawn as words are in a text (rank r with probability ~ 1 / r), and a text for each."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        if number % SAMPLES_PER_PROMPT == 0:
            prompt_ids = rng.integers(0, VOCABULARY, PROMPT_TOKENS, dtype=np.int32)
        ids = np.exp(rng.random(tokens) * np.log(VOCABULARY)).astype(np.int32)
        log_probs = -rng.standard_exponential(tokens, dtype=np.float32)
        text = rng.integers(97, 123, tokens * CHARACTERS_PER_TOKEN, dtype=np.uint8).tobytes().decode()
        place = (number // SAMPLES_PER_PROMPT, number % SAMPLES_PER_PROMPT)
        made.append(Rollout(*place, prompt_ids, ids, log_probs, text, "length", 0, 0, "vllm_0"))
    return made


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    value = work()
    return value, time.perf_counter() - start


def _resident_bytes(field: str) -> int:
    """VmRSS, or VmHWM: the highest so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _copy_bytes_per_s() -> float:
    source, target = np.ones(2**26, dtype=np.uint8), np.zeros(2**26, dtype=np.uint8)
    return 2**26 / min(_timed(lambda: np.copyto(target, source))[1] for _ in range(5))


def _write_plainly(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def table(results: Sequence[dict[str, float]]) -> str:
    """A line for each rank."""
    lines = [
        "| rank | deal s (limit) | pack s (limit) | record alone s (limit) | all together s | of a core s | recorded MB | memory MB |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for rank, found in enumerate(results):
        record = f"{found['record_s']:.2f} ({found['record_limit_s']:.2f})" if "record_s" in found else ""
        recorded = f"{found['recorded_mb']:.0f}" if "recorded_mb" in found else ""
        lines.append(
            f"| {rank} | {found['deal_s']:.2f} ({found['deal_limit_s']:.2f}) | {found['pack_s']:.2f} ({found['pack_limit_s']:.2f}) "
            f"| {record} | {found['all_s']:.2f} | {found['cpu_s']:.2f} | {recorded} | {found['memory_mb']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
