"""Samples a policy on fresh prompts of a task and scores it. One process; the engine is the run's own."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from megatron_entropic.config import Config
from megatron_entropic.evaluation.scores import avg_at_k, distinct_share, pass_at_k
from megatron_entropic.rollout.prompts import make_stream
from megatron_entropic.rollout.scoring import Scorer
from megatron_entropic.rollout.source import make_engine
from megatron_entropic.system.devices import without_training_ranks
from megatron_entropic.tasks import make_task
from megatron_entropic.whole_file import write_whole

SEED_OFFSET = 1_000_000
"""Added to trainer.seed: evaluation draws from another stream of problems than training."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a policy. `pass_at` maps k to pass@k; `surprisal` is the mean of -log pi of sampled tokens (nats)."""

    model: str
    task: str
    prompts: int
    samples: int
    temperature: float
    avg: float
    pass_at: dict[int, float]
    distinct: float
    surprisal: float
    length: float

    def save(self, path: Path) -> None:
        """Writes the scores as JSON, whole or not at all."""
        write_whole(path, (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())

    def __str__(self) -> str:
        rows = {
            f"avg@{self.samples}": f"{self.avg:.3f}",
            **{f"pass@{k}": f"{chance:.3f}" for k, chance in self.pass_at.items()},
            "distinct": f"{self.distinct:.3f}  different right answers / right answers",
            "surprisal": f"{self.surprisal:.3f}  nats per sampled token",
            "length": f"{self.length:.1f}  tokens",
        }
        head = f"{self.model}: {self.prompts} prompts of {self.task} x {self.samples} samples, temperature {self.temperature:g}"
        return "\n".join([head, *(f"  {name:<10} {value}" for name, value in rows.items())])


def evaluate(cfg: Config, prompts: int) -> Evaluation:
    """Scores the policy `cfg.model.hf_dir` on `prompts` problems x `batch.samples_per_prompt` samples.

    Raises RolloutError, or ValueError naming what cannot be evaluated.
    """
    samples = cfg.batch.samples_per_prompt
    seed = cfg.trainer.seed + SEED_OFFSET
    task = make_task(cfg.task, seed)
    stream = make_stream(cfg, task, prompts_per_step=prompts)
    asked, problems = stream.step(0)
    without_training_ranks()
    engine = make_engine(cfg)
    try:
        engine.start()
        rollouts = engine.generate(asked, samples)
    finally:
        engine.close()
    scorer = Scorer(task, cfg.task, seed, cfg.reward)
    try:
        scores = scorer.finish(0, rollouts, problems)
    finally:
        scorer.close()
    rewards_PS = [scores.rewards[start : start + samples] for start in range(0, len(rollouts), samples)]
    groups = [rollouts[start : start + samples] for start in range(0, len(rollouts), samples)]
    texts_PS = [[rollout.text for rollout in group] for group in groups]
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    return Evaluation(
        model=str(cfg.model.hf_dir),
        task=cfg.task.name,
        prompts=prompts,
        samples=samples,
        temperature=cfg.rollout.temperature,
        avg=avg_at_k(rewards_PS),
        pass_at={k: pass_at_k(rewards_PS, k) for k in _powers_of_two(samples)},
        distinct=distinct_share(texts_PS, rewards_PS),
        surprisal=-sum(sum(rollout.log_probs) for rollout in rollouts) / tokens,
        length=tokens / len(rollouts),
    )


def _powers_of_two(largest: int) -> list[int]:
    """2, 4, 8, ... up to `largest`; pass@1 is avg@k."""
    return [2**n for n in range(1, largest.bit_length())]
