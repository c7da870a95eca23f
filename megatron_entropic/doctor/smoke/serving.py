"""Part `server`: a vLLM server that shares the trainer's device, an update, its weights over gloo, and the gap of the log-probs."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_entropic.config import (
    BatchConfig,
    Config,
    ControlConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RolloutConfig,
    RunConfig,
)
from megatron_entropic.control import make_controller
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.doctor.smoke.machine_size import MachineSize, machine_size, save_random_model
from megatron_entropic.doctor.smoke.short_run import train_with_server
from megatron_entropic.policy.batching import Batch, held
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.update_stats import gap_of
from megatron_entropic.rollout.logprob_gap import warn_bounds
from megatron_entropic.rollout.types import Prompt, Rollout
from megatron_entropic.rollout.vllm.fleet import VLLMFleet, make_fleet
from megatron_entropic.trainer import make_samples, update_policy

_STARTUP_S = 300.0
_MOVED = 0.25
"""Learning rate x hidden size x layers: Adam's first step moves each weight by the rate, and log-probs by some tenths of a nat."""


def run(findings: Findings) -> None:
    """Gaps are judged before the update, of the weights that the server read, and after it, of those that it was sent."""
    size = machine_size()
    findings.step(f"making a model: {size.model_text}")
    cfg = serving_config(save_random_model(Path(tempfile.mkdtemp()), size), findings.kept, size)
    fleet = make_fleet(cfg)
    try:
        findings.step("starting the server")
        start = time.monotonic()
        fleet.start()  # before the policy is there: while a server measures free memory, what others take costs it its cache
        graphs = "no, eager" if size.device.type == "cpu" else "yes"
        findings.found("server ready", after_s=time.monotonic() - start, CUDA_graphs=graphs)
        policy = Policy(cfg, initialize_parallel(cfg.parallel, seed=1))
        _serve(findings, cfg, fleet, policy, size)
    finally:
        fleet.close()
    if size.device.type == "cpu":
        findings.cannot("CUDA graphs, and `train` on a GPU that trainer and server share", "there is no GPU")
    else:
        train_with_server(findings, "three steps of train, the server on the trainer's GPU", "rollout.share_gpu=true")


def _serve(findings: Findings, cfg: Config, fleet: VLLMFleet, policy: Policy, size: MachineSize) -> None:
    prompts = [Prompt(index, "", tuple(2 + (index * 7 + place * 3) % 95 for place in range(4 + index))) for index in range(8)]
    controller = make_controller(cfg)
    for version in (0, 1):
        findings.step(f"sampling from weight version {version}")
        start = time.monotonic()
        rollouts = fleet.generate(prompts, cfg.batch.samples_per_prompt)
        seconds = time.monotonic() - start
        findings.expect(all(rollout.last_version == version for rollout in rollouts), f"rollouts are not of weight version {version}")
        batch = Batch(make_samples(cfg, rollouts, _rewards(rollouts)))
        updates = list(update_policy(cfg, policy, controller, batch))
        largest, mean = gap_of(updates)
        findings.found(f"weight version {version}", gap_mean=mean, gap_max=largest, tokens_per_s=batch.response_tokens / seconds)
        bounds = warn_bounds(cfg.model, cfg.rollout, version)
        gap = f"|trainer - sampler| log-prob is {mean:.3g} nats in the mean, {largest:.3g} at most"
        findings.expect(bounds is None or not bounds.exceeded(largest, mean), f"weight version {version}: {gap}; above {bounds}")
        if version == 0:
            _send(findings, fleet, policy, batch, gap=mean)


def _send(findings: Findings, fleet: VLLMFleet, policy: Policy, batch: Batch, gap: float) -> None:
    """Sends the updated weights, and says how far they are from those of before: the gap of a server that kept the old ones.

    `gap` is the mean one between trainer and server, of equal weights.
    """
    findings.step("sending the updated weights")
    start = time.monotonic()
    fleet.sync_weights(policy.weights(), version=1)  # raises where the server's checksum is another
    seconds = time.monotonic() - start
    policy.prepare(batch)
    assert batch.old_log_probs_N is not None
    sampled_N = torch.cat([torch.as_tensor(held(sample).sampler_log_probs) for sample in batch.samples])
    moved = float((batch.old_log_probs_N.cpu() - sampled_N).abs().mean())
    findings.found("weights sent over gloo", seconds=seconds, checksum="equal on both sides", the_update_moved_log_probs_by=moved)
    if moved < 2 * gap:
        findings.cannot("seeing the update in the log-probs", f"it moved them by {moved:.3g} nats, and rounding does by {gap:.3g}")


def _rewards(rollouts: Sequence[Rollout]) -> list[float]:
    """Some right, some wrong, so that the update moves the weights."""
    return [float(int(rollout.response_ids.sum()) % 2) for rollout in rollouts]


def serving_config(model: Path, run_dir: Path, size: MachineSize) -> Config:
    """One rank and one server, whose log goes to `run_dir`; on a GPU both are on the same."""
    return Config(
        run=RunConfig(name="smoke", dir=run_dir),
        model=ModelConfig(hf_path=model, dtype=size.dtype),  # type: ignore[arg-type]
        parallel=ParallelConfig(),
        batch=BatchConfig(prompts_per_step=8, samples_per_prompt=4, max_tokens_per_micro_batch=size.tokens),
        control=ControlConfig(kind="entropic", target_entropy=1.0),
        optimizer=OptimizerConfig(lr=_MOVED / (size.shape["hidden_size"] * size.shape["num_hidden_layers"])),
        rollout=RolloutConfig(
            engine="vllm", servers=1, max_new_tokens=32, startup_timeout_s=_STARTUP_S, share_gpu=size.device.type == "cuda"
        ),
    )
