"""EntroPIC in a loop of your own: plain PyTorch and transformers, no Megatron-Core, no servers, one process.

    python examples/transformers_loop.py [HF_DIR]

A tiny model answers "347=" with any "a+b" that is right. Plain GRPO makes it sure of a few answers, and the entropy falls; EntroPIC
holds it where it is told to. What the library gives: exact entropies with `token_statistics`, advantages, the clipped loss, the
actuator that says which tokens move the entropy, and the controller.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_entropic.algorithms import actuator_mask, clipped_policy_loss, entropic_adjustment, group_advantages
from megatron_entropic.control import EntroPIC
from megatron_entropic.entropy import token_statistics

PROMPTS, SAMPLES, NEW_TOKENS = 16, 8, 9
LEARNING_RATE = 4e-4
KP, KI = 20.0, 2.0
TINY = Path(__file__).parent.parent / "models" / "tiny-decompose"


def reward(number: int, answer: str) -> float:
    """1 for "a+b" of the right sum."""
    terms = answer.split("+")
    return float(len(terms) == 2 and all(term.isdecimal() for term in terms) and sum(map(int, terms)) == number)


@dataclass
class Batch:
    """Sequences [sequences, length], right-padded, and what is known of them."""

    ids: Tensor
    response: Tensor
    """[sequences, length - 1] whether the token after this position is one of the response."""
    rewards: Tensor
    """[prompts, samples]"""


class Loop:
    """A policy, its optimizer and its data."""

    def __init__(self, hf_dir: Path = TINY, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.random = random.Random(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(hf_dir)
        self.policy = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    @torch.no_grad()
    def sample(self) -> Batch:
        """A step's prompts, all of one length, with their samples at temperature 1."""
        numbers = [self.random.randint(100, 999) for _ in range(PROMPTS)]
        prompts = torch.tensor([self.tokenizer.encode(f"{number}=") for number in numbers])
        ids = self.policy.generate(
            prompts.repeat_interleave(SAMPLES, 0),
            attention_mask=torch.ones(PROMPTS * SAMPLES, prompts.shape[1], dtype=torch.long),
            do_sample=True,
            top_k=0,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        answers = ids[:, prompts.shape[1] :]
        ended = (answers == self.tokenizer.eos_token_id).cumsum(1)
        kept = ended - (answers == self.tokenizer.eos_token_id).long() == 0  # up to the end of sequence, and it too
        response = torch.cat([torch.zeros(len(ids), prompts.shape[1] - 1, dtype=torch.bool), kept], dim=1)
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        rewards = [reward(number, texts[row]) for row, number in enumerate(n for n in numbers for _ in range(SAMPLES))]
        return Batch(ids, response, torch.tensor(rewards).view(PROMPTS, SAMPLES))

    def update(self, batch: Batch, alpha: float) -> float:
        """One update of GRPO with EntroPIC's adjustment; returns the entropy before it, nats."""
        mask = batch.response
        logits = self.policy(batch.ids).logits[:, :-1]  # logits[:, t] predict ids[:, t + 1]
        statistics = token_statistics(logits, batch.ids[:, 1:], vocab_size=logits.shape[-1], mask=mask)
        log_prob, entropy = statistics.log_prob[mask], statistics.entropy[mask].detach()
        advantages = group_advantages(batch.rewards).flatten()[:, None].expand_as(mask)[mask]
        ratio = (log_prob - log_prob.detach()).exp()  # one update a batch: the sampler's policy is this one
        actuator = actuator_mask("signed", log_prob, entropy)
        loss = clipped_policy_loss(ratio, advantages, clip_low=0.2, clip_high=0.2)
        loss = loss + alpha * entropic_adjustment(ratio, advantages, actuator)
        self.optimizer.zero_grad()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        return float(entropy.mean())


def train(steps: int, controller: EntroPIC | None, hf_dir: Path = TINY) -> tuple[list[float], list[float]]:
    """(entropies, mean rewards) of each step; no controller: plain GRPO."""
    loop, entropies, rewards = Loop(hf_dir), [], []
    for _ in range(steps):
        batch = loop.sample()
        entropies.append(loop.update(batch, controller.alpha if controller else 0.0))
        rewards.append(float(batch.rewards.mean()))
        if controller:
            controller.step(entropies[-1])  # the token mean over the whole batch; its alpha is for the next update
    return entropies, rewards


def main() -> None:
    """Plain GRPO and EntroPIC, one after the other."""
    hf_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else TINY
    for name, controller in (("GRPO", None), ("EntroPIC", entropic(0.85))):
        entropies, rewards = train(60, controller, hf_dir)
        first, last = sum(entropies[:10]) / 10, sum(entropies[-20:]) / 20
        print(f"{name:9} entropy {first:.3f} at first, {last:.3f} in the last 20 steps; reward {sum(rewards[-20:]) / 20:.3f}")


def entropic(target: float) -> EntroPIC:
    """A controller whose gains fit this model and learning rate; `Steering` finds them by itself (docs/library.md)."""
    return EntroPIC(target_entropy=target, kp=KP, ki=KI, alpha_limit=2.0)


if __name__ == "__main__":
    main()
