"""Tokens a second and model FLOPs utilisation (MFU) of the phases of a step."""

from collections.abc import Mapping, Sequence

from megatron_entropic import platform
from megatron_entropic.config import Config
from megatron_entropic.control.kinds import measures_response
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.observability.metrics import MetricValue
from megatron_entropic.planning.flops import generation_flops, update_flops
from megatron_entropic.planning.peak import peak_tflops
from megatron_entropic.planning.workload import forward_passes
from megatron_entropic.rollout.types import Rollout


class Throughput:
    """Makes the metrics perf/rollout_* and perf/update_* of a step. `peak`: FLOP/s of a device; None leaves MFU out."""

    def __init__(self, cfg: Config, arch: Architecture) -> None:
        self._cfg, self._arch = cfg, arch
        name = platform.device_name()
        tflops = cfg.profile.peak_tflops or (peak_tflops(name) if name else None)
        self.peak = tflops * 1e12 if tflops else None

    def metrics(self, rollouts: Sequence[Rollout], times: Mapping[str, float]) -> dict[str, MetricValue]:
        """Of a step with these rollouts (by prompt, then sample) and `times` (StepTimer.lap)."""
        cfg = self._cfg
        lengths = [(len(rollout.prompt_ids), len(rollout.response_ids)) for rollout in rollouts]
        responses = sum(response for _, response in lengths)
        rollout_s = None if cfg.rollout.max_staleness else times.get("time/rollout_s")
        update_s = times.get("time/update_s")
        again = cfg.control.response_share if measures_response(cfg.control) else 0.0
        passes = forward_passes(cfg.batch, cfg.control, cfg.rollout) + again
        trained = update_flops(self._arch, lengths, passes)
        generated = generation_flops(self._arch, lengths, cfg.batch.samples_per_prompt)
        return {
            "perf/rollout_tokens_per_s": _rate(responses, rollout_s),
            "perf/update_tokens_per_s": _rate(sum(map(sum, lengths)), update_s),
            "perf/rollout_mfu": self._mfu(generated, rollout_s, self._sampling_devices()),
            "perf/update_mfu": self._mfu(trained, update_s, cfg.parallel.world_size),
        }

    def _sampling_devices(self) -> int:
        """Devices that generate; 0 where it is not known how many."""
        rollout = self._cfg.rollout
        return {"vllm": rollout.servers * rollout.tensor, "local": 1}.get(rollout.engine, 0)

    def _mfu(self, flops: float, seconds: float | None, devices: int) -> float | None:
        return flops / (seconds * self.peak * devices) if self.peak and seconds and devices else None


def _rate(tokens: int, seconds: float | None) -> float | None:
    return tokens / seconds if seconds else None
