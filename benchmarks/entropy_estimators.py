"""The entropy of one unchanged policy, as different codes measure it, on batches of the quickstart's size.

    python -m benchmarks.entropy_estimators [--batches 40] [--out docs/images/entropy_estimators.png]

Every batch is 64 prompts x 8 fresh samples of the tiny model. Four numbers from the same logits: the exact entropy (ours); the
mean surprisal of the sampled tokens, a Monte-Carlo estimate of it without gradient (NeMo-RL); -p log p of the sampled tokens
(Megatron-LM's RL); and the entropy with Megatron's padded vocabulary columns (logit 0) counted (everybody who takes the local shard
as it is). Prints means and standard deviations over the batches, and draws them.

Shapes: N response tokens of a batch of B sequences, T positions of one, V vocabulary.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from megatron_entropic.config import RolloutConfig, TaskConfig
from megatron_entropic.entropy import token_statistics
from megatron_entropic.hf.tables import padded_vocab_size
from megatron_entropic.rollout.local_engine import LocalEngine
from megatron_entropic.rollout.prompt_encoder import PromptEncoder
from megatron_entropic.rollout.prompts import PromptStream
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.tasks import make_task

matplotlib.use("Agg")
from matplotlib import pyplot

MODEL = Path(__file__).resolve().parent.parent / "models" / "tiny-decompose"
PADDED = padded_vocab_size(99, 128, 2)
EXACT, SURPRISAL, SAMPLED, PADS = "exact", "surprisal of the sample", "-p log p of the sample", "padded columns counted"
COLOURS = {EXACT: "#0072b2", SURPRISAL: "#e69f00", SAMPLED: "#d55e00", PADS: "#009e73"}


def response_logits(model: torch.nn.Module, rollouts: list[Rollout]) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits_NV, targets_N) of all response tokens."""
    sequences = [torch.tensor([*rollout.prompt_ids.tolist(), *rollout.response_ids.tolist()]) for rollout in rollouts]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    logits_BTV = model(ids).logits
    rows = [
        logits_BTV[b, len(rollout.prompt_ids) - 1 : len(rollout.prompt_ids) + len(rollout.response_ids) - 1]
        for b, rollout in enumerate(rollouts)
    ]
    return torch.cat(rows), torch.cat([torch.tensor(rollout.response_ids.tolist()) for rollout in rollouts])


@torch.no_grad()
def estimates(model: torch.nn.Module, rollouts: list[Rollout]) -> dict[str, float]:
    """The four numbers of one batch, nats per token."""
    logits_NV, targets_N = response_logits(model, rollouts)
    exact = token_statistics(logits_NV, targets_N, vocab_size=99)
    padded = token_statistics(F.pad(logits_NV, (0, PADDED - 99)), targets_N, vocab_size=PADDED)
    return {
        EXACT: exact.entropy.mean().item(),
        SURPRISAL: -exact.log_prob.mean().item(),
        SAMPLED: -(exact.log_prob.exp() * exact.log_prob).mean().item(),
        PADS: padded.entropy.mean().item(),
    }


def draw(batches: dict[str, list[float]], out: Path) -> None:
    """One line per estimator over the batches."""
    figure, axes = pyplot.subplots(figsize=(8, 3.8), dpi=150, layout="constrained")
    for name, per_batch in batches.items():
        axes.plot(per_batch, label=name, color=COLOURS[name], linewidth=2.4 if name == EXACT else 1.2)
    axes.set(xlabel="batch (the policy does not change)", ylabel="entropy (nats per token)", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("docs/images/entropy_estimators.png"))
    options = parser.parse_args()
    engine = LocalEngine(RolloutConfig(engine="local", max_new_tokens=16), model_dir=MODEL, dtype="float32", seed=0)
    encoder = PromptEncoder(MODEL, chat_template=False)
    stream = PromptStream(make_task(TaskConfig(), 0), encoder, prompts_per_step=64, room=64, overlong="refuse")
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    batches: dict[str, list[float]] = {name: [] for name in COLOURS}
    for step in range(options.batches):
        prompts, _ = stream.step(step)
        for name, value in estimates(model, engine.generate(prompts, 8)).items():
            batches[name].append(value)
    for name, per_batch in batches.items():
        values = torch.tensor(per_batch, dtype=torch.float64)
        print(f"{name:<26} {values.mean():.4f} +- {values.std():.4f}")
    draw(batches, options.out)


if __name__ == "__main__":
    main()
