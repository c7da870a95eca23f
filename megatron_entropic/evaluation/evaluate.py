"""Samples a policy on problems of a task and scores it. One process; the engine is the run's own."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.evaluation.answering import LOCAL_PROMPTS
from megatron_entropic.evaluation.problems import ChosenProblems, choose_problems
from megatron_entropic.evaluation.progress import Counter
from megatron_entropic.evaluation.scores import avg_at_k, distinct_fraction, pass_at_k
from megatron_entropic.platform import check_gpus_are_seen
from megatron_entropic.rollout.prompt_encoder import load_tokenizer
from megatron_entropic.rollout.scoring import Scorer
from megatron_entropic.rollout.source import make_engine
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.rollout.vocabulary import Vocabulary
from megatron_entropic.system.atomic_files import write_atomically
from megatron_entropic.system.devices import ask_for_cpu, without_training_ranks


@dataclass(frozen=True)
class Evaluation:
    """Scores of a policy. `pass_at` maps k to pass@k; `surprisal` is the mean of -log pi of sampled tokens (nats).

    `seen`: how many of the prompts the run was trained on; None when that is not known. `notes` say what the numbers are of.
    """

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
    truncated: float
    seen: int | None
    notes: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Writes the scores as JSON, atomically."""
        write_atomically(path, (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())

    def __str__(self) -> str:
        rows = {
            f"avg@{self.samples}": f"{self.avg:.3f}",
            **{f"pass@{k}": f"{chance:.3f}" for k, chance in self.pass_at.items()},
            "distinct": f"{self.distinct:.3f}  different right answers / right answers",
            "surprisal": f"{self.surprisal:.3f}  nats per sampled token",
            "length": f"{self.length:.1f}  tokens",
            "truncated": f"{self.truncated:.3f}  of the responses reached rollout.max_new_tokens",
        }
        how = "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"
        head = f"{self.model}: {self.prompts} prompts of {self.task} x {self.samples} samples, {how}"
        return "\n".join([head, *(f"  {note}" for note in self.notes), *(f"  {name:<10} {value}" for name, value in rows.items())])


def evaluate(cfg: Config, prompts: int | None = None, trained: Config | None = None) -> Evaluation:
    """Scores the policy of `cfg.model` on `prompts` problems x `batch.samples_per_prompt` samples.

    No row of a data file is taken twice; without `prompts`, PROMPTS problems or as many as there are. With
    `rollout.temperature=0` each problem is answered once, greedily. `trained`: the settings of the run that the policy comes from.
    Raises RolloutError, or ValueError naming what cannot be evaluated.
    """
    cfg = _for_evaluation(cfg)
    chosen = choose_problems(cfg, prompts, trained)
    rollouts, rewards = _answers(cfg, chosen)
    samples, count = cfg.batch.samples_per_prompt, len(chosen.prompts)
    rewards_PS = [rewards[start : start + samples] for start in range(0, len(rollouts), samples)]
    texts_PS = [[rollout.text for rollout in rollouts[start : start + samples]] for start in range(0, len(rollouts), samples)]
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    return Evaluation(
        model=str(model_folder(cfg.model.hf_path).hf_dir),
        task=cfg.task.name,
        prompts=count,
        samples=samples,
        temperature=cfg.rollout.temperature,
        avg=avg_at_k(rewards_PS),
        pass_at={k: pass_at_k(rewards_PS, k) for k in _powers_of_two(samples)},
        distinct=distinct_fraction(texts_PS, rewards_PS),
        surprisal=-sum(float(rollout.log_probs.sum(dtype=np.float64)) for rollout in rollouts) / tokens,
        length=tokens / len(rollouts),
        truncated=sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        seen=chosen.seen,
        notes=chosen.notes,
    )


def _for_evaluation(cfg: Config) -> Config:
    """The settings with the held-out rows of a data file for those trained on, and one sample of each problem when greedy."""
    options = cfg.task.options
    if options.get("test_fraction") and "split" not in options:
        cfg = dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, options={**options, "split": "test"}))
    if cfg.data.held_out and cfg.data.part == "train":
        cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, part="held_out"))
    if cfg.rollout.temperature == 0:
        cfg = dataclasses.replace(cfg, batch=dataclasses.replace(cfg.batch, samples_per_prompt=1))
    return cfg


def _answers(cfg: Config, chosen: ChosenProblems) -> tuple[list[Rollout], list[float]]:
    """The rollouts of all prompts, by prompt, then sample, and their rewards; progress on the terminal."""
    without_training_ranks()
    if cfg.parallel.device == "cpu":
        ask_for_cpu()
    check_gpus_are_seen()
    scorer = Scorer(chosen.task, cfg.task, chosen.seed, cfg.reward, Vocabulary(load_tokenizer(model_folder(cfg.model.hf_path).hf_dir)))
    try:
        rollouts = _rollouts(cfg, chosen, scorer)
        return rollouts, scorer.finish(0, rollouts, chosen.problems).rewards
    finally:
        scorer.close()


def _rollouts(cfg: Config, chosen: ChosenProblems, scorer: Scorer) -> list[Rollout]:
    """All rollouts; `scorer` begins with each as it comes."""
    rollouts: list[Rollout] = []
    engine = make_engine(cfg)
    per_call = len(chosen.prompts) if engine.in_background else LOCAL_PROMPTS
    try:
        engine.start()
        with Counter(len(chosen.prompts)) as counter:

            def finished(of_prompt: Sequence[Rollout]) -> None:
                scorer.begin(of_prompt, chosen.problems)
                counter.add(1)

            for start in range(0, len(chosen.prompts), per_call):
                asked = chosen.prompts[start : start + per_call]
                rollouts += engine.generate(asked, cfg.batch.samples_per_prompt, finished)
                counter.reach(start + len(asked))
        return rollouts
    finally:
        engine.close()


def _powers_of_two(largest: int) -> list[int]:
    """2, 4, 8, ... up to `largest`; pass@1 is avg@k."""
    return [2**n for n in range(1, largest.bit_length())]
