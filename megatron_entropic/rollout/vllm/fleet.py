"""The fleet of vLLM servers that one run samples from and keeps in step with its weights; usually it launches and owns them."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config, RolloutConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.stop_tokens import stop_token_ids
from megatron_entropic.rollout.prompt_encoder import load_tokenizer
from megatron_entropic.rollout.types import (
    Finished,
    IntArray,
    MetricsServer,
    NamedWeights,
    Prompt,
    Rollout,
    RolloutError,
    SamplingParameters,
    ServerLostError,
)
from megatron_entropic.rollout.vllm.client import ServerClient
from megatron_entropic.rollout.vllm.remote_server import find_servers, fleet_folder, trainer_lock
from megatron_entropic.rollout.vllm.sampling import Sampled, SamplingRequest, sample
from megatron_entropic.rollout.vllm.server import VLLMServer, open_listeners
from megatron_entropic.rollout.vocabulary import Vocabulary
from megatron_entropic.rollout.weight_sync.sync import WeightSync, call_together
from megatron_entropic.rollout.weight_sync.transports import make_transport
from megatron_entropic.system.folder_lock import FolderLock

_LATEST_S = 10.0
"""A thread that waits for a server ends by itself within so much more than its limit."""

logger = logging.getLogger(__name__)


class VLLMFleet:
    """A RolloutEngine over cfg.servers vLLM servers: on this node, or as announced in a folder. One process, rank 0, drives it.

    `start` launches the servers (`launch` alone does not wait, so that other work can be done meanwhile). Every failure is a
    RolloutError that names the server, its address, process and log. After a failed weight update the fleet refuses to work.
    The first server's number is `first_index`. `stats`: whether they count what they do, for their /metrics.
    """

    in_background = True

    def __init__(
        self,
        cfg: RolloutConfig,
        *,
        model_dir: Path,
        dtype: str,
        max_model_len: int,
        seed: int,
        log_dir: Path,
        first_index: int = 0,
        stats: bool = False,
    ) -> None:
        self.cfg = cfg
        self.model_dir = model_dir
        self.dtype = dtype
        self.max_model_len = min(max_model_len, Architecture.from_hf(model_dir).max_positions)
        self.seed = seed
        self.log_dir = log_dir
        self.first_index = first_index
        self.stats = stats
        self.folder = fleet_folder(cfg)
        self.servers: list[ServerClient] = []
        self._sync: WeightSync | None = None
        self._broken: str | None = None
        self._stop_token_ids = stop_token_ids(model_dir)
        self._claim: FolderLock | None = None

    def launch(self) -> None:
        """Starts every server process and returns. Raises RolloutError for a port in use; leaves nothing behind then.

        Announced servers are started by others: nothing is done for them before `start`.
        """
        if self.folder is not None:
            return
        owned = [
            VLLMServer(
                self.cfg,
                self.first_index + slot,
                listener=listener,
                model_dir=self.model_dir,
                dtype=self.dtype,
                max_model_len=self.max_model_len,
                seed=self.seed,
                log_dir=self.log_dir,
                slot=slot,
                stats=self.stats,
            )
            for slot, listener in enumerate(open_listeners(self.cfg))
        ]
        self.servers = list(owned)
        try:
            for server in owned:
                server.launch()
        except RolloutError:
            self.close()
            raise

    def start(self) -> None:
        """Launches the servers unless done, waits till all answer, and connects them for weight updates, as version 0.

        Raises RolloutError naming the server that died, was too slow or did not connect, and FolderOwnedError naming the trainer
        that uses announced servers already; this fleet's servers are ended then.
        """
        deadline = time.monotonic() + self.cfg.startup_timeout_s
        try:
            if self.folder is not None:
                self._claim = trainer_lock(self.folder)
                self._claim.acquire()
                self.servers = list(find_servers(self.folder, self.cfg.servers, self.cfg.startup_timeout_s))
            elif not self.servers:
                self.launch()
            self._wait_ready(deadline)
            self._vocabulary = Vocabulary(load_tokenizer(self.model_dir))
            self._sync = WeightSync(self.servers, make_transport(self.cfg), self.cfg.sync_timeout_s)
            self._sync.connect()
            for server in self.servers:
                server.call("POST", "/update_weight_version", timeout_s=self.cfg.sync_timeout_s, json={"new_version": "0"})
        except BaseException:
            self.close()
            raise

    def wait_ready(self) -> None:
        """Waits till all launched servers answer. Raises RolloutError naming one that died or was too slow; all are ended then."""
        try:
            self._wait_ready(time.monotonic() + self.cfg.startup_timeout_s)
        except BaseException:
            self.close()
            raise

    def _wait_ready(self, deadline: float) -> None:
        timeout_s = max(deadline - time.monotonic(), 1.0)
        waits = {server.name: _wait(server, timeout_s, self.cfg.startup_timeout_s) for server in self.servers}
        late = call_together(waits, time.monotonic() + timeout_s + _LATEST_S)
        if isinstance(late, list):
            named = ", ".join(str(server) for server in self.servers if server.name in late)
            raise ServerLostError(f"not ready after {self.cfg.startup_timeout_s:g} s (rollout.startup_timeout_s): {named}")

    def generate(
        self,
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        finished: Finished | None = None,
        sampling: SamplingParameters | None = None,
    ) -> list[Rollout]:
        """`samples_per_prompt` rollouts of every prompt, ordered by prompt, then sample; by `sampling` instead of the run's settings.

        Log-probs are those of the sampling distribution (float, nats, at cfg.temperature, over the whole vocabulary). Which
        server, seed and index a sample gets depends on (seed, prompt.index, sample) and the order of prompts only. Raises
        RolloutError naming a server that fails or is too slow, or a prompt that does not fit.
        """
        self._check_usable()
        own = sampling is None
        sampling = sampling or SamplingParameters(self.cfg.temperature, 1.0, self.cfg.max_new_tokens, self.seed)
        for prompt in prompts:
            self._check_fits(prompt, sampling.max_new_tokens)
        request = SamplingRequest(
            seed=sampling.seed,
            samples=samples_per_prompt,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            timeout_s=self.cfg.request_timeout_s,
            stop_token_ids=self._stop_token_ids,
            sequences=self.cfg.max_sequences,
        )

        def accept(prompt: Prompt, server: ServerClient, samples: Sequence[Sampled]) -> list[Rollout]:
            prompt_ids = np.array(prompt.token_ids, dtype=np.int32)
            rollouts = [self._rollout(prompt, prompt_ids, index, server, sampled) for index, sampled in enumerate(samples)]
            if finished is not None:
                finished(rollouts)
            return rollouts

        answers = sample(self.servers, prompts, request, accept)
        if not own and self._sync is not None:
            self._sync.drop_prefix_caches()  # so that training's prompts are computed as if these had never been asked
        return [rollout for rollouts in answers for rollout in rollouts]

    def _check_fits(self, prompt: Prompt, max_new_tokens: int) -> None:
        longest = len(prompt.token_ids) + max_new_tokens
        if not prompt.token_ids or longest > self.max_model_len:
            raise RolloutError(
                f"prompt {prompt.index} has {len(prompt.token_ids)} tokens; it must have at least 1, and with "
                f"max_new_tokens={max_new_tokens} at most the servers' context of {self.max_model_len}"
            )

    def _rollout(self, prompt: Prompt, prompt_ids: IntArray, index: int, server: ServerClient, sampled: Sampled) -> Rollout:
        return Rollout(
            prompt_index=prompt.index,
            sample_index=index,
            prompt_ids=prompt_ids,
            response_ids=sampled.token_ids,
            log_probs=sampled.log_probs,
            text=self._vocabulary.response_text(sampled.token_ids, sampled.finish_reason),
            finish_reason=sampled.finish_reason,
            first_version=sampled.first_version,
            last_version=sampled.last_version,
            server=server.name,
        )

    def seek(self, step: int) -> None:
        """Any step can be generated at any time."""

    def sync_weights(self, weights: NamedWeights, version: int) -> None:
        """Replaces every server's weights by `weights`; rollouts made afterwards carry `version`. Always drains `weights`.

        Raises RolloutError naming the server that failed, hung beyond cfg.sync_timeout_s, or holds other weights than were
        sent. The fleet is unusable from then on, so that nothing half-loaded is ever sampled from.
        """
        try:
            self._check_usable()
        except RolloutError:
            for _ in weights:
                pass
            raise
        assert self._sync is not None
        self._broken = f"the update to weight version {version} did not complete"
        self._sync.send(weights, version)
        self._broken = None

    @property
    def metrics_servers(self) -> list[MetricsServer]:
        """The servers that have proved who they are, and may be sent their key."""
        if self._sync is None:
            return []
        return [MetricsServer(server.name, server.url, server.headers) for server in self.servers]

    def _check_usable(self) -> None:
        if self._sync is None:
            raise RolloutError("the rollout fleet is not running: start() comes first, and nothing after close()")
        if self._broken:
            raise RolloutError(f"the rollout fleet must not be used any more: {self._broken}; resume the run to start a new one")

    def close(self) -> None:
        """Ends every process and connection of the fleet; safe to call twice."""
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            server.close()
        if self._sync is not None:
            self._sync.close()
            self._sync = None
        if self._claim is not None:
            self._claim.release()
            self._claim = None


def longest_sequence(cfg: Config) -> int:
    """Tokens of the longest sequence that may be sampled: a training prompt's room and the longest answer, of validation too."""
    room = cfg.batch.max_tokens_per_micro_batch - cfg.rollout.max_new_tokens
    sets = cfg.validation.sets if cfg.validation.every else ()
    return room + max([cfg.rollout.max_new_tokens, *(each.max_new_tokens or 0 for each in sets)])


def make_fleet(cfg: Config, first_index: int = 0) -> VLLMFleet:
    """The fleet that the settings of a run describe; nothing is launched yet. Raises ValueError for a model that is none."""
    return VLLMFleet(
        cfg.rollout,
        model_dir=model_folder(cfg.model.hf_path).hf_dir,
        dtype=cfg.model.dtype,
        max_model_len=longest_sequence(cfg),
        seed=cfg.trainer.seed,
        log_dir=cfg.run_dir / "logs",
        first_index=first_index,
        stats=bool(cfg.tracking.prometheus_port),
    )


def launch_fleet(cfg: Config) -> VLLMFleet:
    """The engine of `rollout.engine=vllm`: servers are launched, or looked for, and waited for only on shared GPUs.

    Raises RolloutError.
    """
    does = "looking for" if fleet_folder(cfg.rollout) else "starting"
    logger.info("%s %d vLLM servers; their logs: %s", does, cfg.rollout.servers, cfg.run_dir / "logs" / "vllm_*.log")
    fleet = make_fleet(cfg)
    fleet.launch()
    if cfg.rollout.share_gpu:
        fleet.wait_ready()  # before the policy is built: a server counts what others take of its GPU, while it measures, as its own
    return fleet


def _wait(server: ServerClient, timeout_s: float, limit_s: float) -> Callable[[], None]:
    return lambda: server.wait_ready(timeout_s, limit_s)
