"""Where the trainer gets its experience: prompts, an engine on rank 0, the verifier, and the record of it all."""

import logging
import time
from types import TracebackType

from megatron_entropic.config import Config
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.parallel import Parallel
from megatron_entropic.rollout.fleet import VLLMFleet
from megatron_entropic.rollout.prompts import PromptStream, load_tokenizer
from megatron_entropic.rollout.recording import RolloutWriter
from megatron_entropic.rollout.replay import ReplayEngine
from megatron_entropic.rollout.shared_engine import from_rank_zero, weights_to_rank_zero
from megatron_entropic.rollout.types import NamedWeights, Rollout, RolloutEngine
from megatron_entropic.tasks import make_task

logger = logging.getLogger(__name__)


class RolloutSource:
    """Experience of each step, the same on every rank. Rank 0 owns the engine, scores, and records to run_dir/rollouts.

    A context manager: leaving it ends the engine and every process it started.
    """

    def __init__(self, cfg: Config, parallel: Parallel) -> None:
        self.cfg = cfg
        self.parallel = parallel
        self.engine: RolloutEngine | None = None

    def __enter__(self) -> "RolloutSource":
        try:
            from_rank_zero(self.parallel, self._open)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the engine and every process it started."""
        if self.engine is not None:
            self.engine.close()

    def _open(self) -> None:
        self._opened = time.monotonic()
        if self.cfg.rollout.engine == "vllm":
            logger.info("starting %d vLLM servers; their logs: %s", self.cfg.rollout.servers, self.cfg.run_dir / "logs" / "vllm_*.log")
        self.engine = make_engine(self.cfg)  # first: servers start while the rest is read
        self.task = make_task(self.cfg.task, self.cfg.trainer.seed)
        self.prompts = PromptStream(
            self.task,
            load_tokenizer(self.cfg.model.hf_path),
            prompts_per_step=self.cfg.batch.prompts_per_step,
            chat_template=self.cfg.task.chat_template,
        )
        self.writer = RolloutWriter(self.cfg.run_dir / "rollouts")

    def start(self, policy: Policy) -> None:
        """Waits until the engine can generate, and gives it the policy's weights as version 0. Collective over all ranks.

        Apart from opening the source so that servers start while the policy is read.
        """
        from_rank_zero(self.parallel, self._wait_for_servers)
        self.sync_weights(policy, version=0)

    def _wait_for_servers(self) -> None:
        assert self.engine is not None
        self.engine.start()
        if self.cfg.rollout.engine == "vllm":
            logger.info("servers ready after %.0f s", time.monotonic() - self._opened)

    def collect(self, step: int) -> tuple[list[Rollout], list[float]]:
        """The rollouts of `step` (by prompt, then sample) and their rewards, on every rank. Raises RolloutError."""
        return from_rank_zero(self.parallel, self._collect, step)

    def _collect(self, step: int) -> tuple[list[Rollout], list[float]]:
        assert self.engine is not None
        prompts, problems = self.prompts.step(step)
        rollouts = self.engine.generate(prompts, self.cfg.batch.samples_per_prompt)
        rewards = [self.task.score(problems[rollout.prompt_index], rollout.text) for rollout in rollouts]
        self.writer.write(step, rollouts, problems, rewards)
        return rollouts, rewards

    def sync_weights(self, policy: Policy, version: int) -> None:
        """Makes the engine sample from the policy's present weights, as `version`. Collective over all ranks."""

        def send(weights: NamedWeights) -> None:
            assert self.engine is not None
            self.engine.sync_weights(weights, version)

        weights_to_rank_zero(self.parallel, policy, send)


def make_engine(cfg: Config) -> RolloutEngine:
    """The engine that `rollout.engine` names; servers are launched, not waited for. Raises RolloutError."""
    rollout, model = cfg.rollout, cfg.model
    if rollout.engine == "replay":
        assert rollout.replay_path is not None
        return ReplayEngine(rollout.replay_path)
    if rollout.engine == "local":
        from megatron_entropic.rollout.local import LocalEngine  # brings transformers: seconds that other engines need not pay

        return LocalEngine(rollout, model_dir=model.hf_path, dtype=model.dtype, seed=cfg.trainer.seed)
    fleet = VLLMFleet(
        rollout,
        model_dir=model.hf_path,
        dtype=model.dtype,
        max_model_len=cfg.batch.max_tokens_per_micro_batch,
        seed=cfg.trainer.seed,
        log_dir=cfg.run_dir / "logs",
    )
    fleet.launch()
    return fleet
