"""Makes a tiny Qwen3 model to start RL from: a few minutes of supervised warm-up on one task, on a CPU.

    python recipes/make_tiny_model.py --out models/tiny-decompose
    python recipes/make_tiny_model.py --task addition --out models/tiny-addition

The model is left where RL has something to do (tiny_lessons.py says where): some of its samples are wrong, and it has an
entropy to lose. Same seed, same versions, same kind of machine: same weights.

Shapes: B sequences, P prompts, T tokens, V vocabulary.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from megatron_entropic.rollout.local_engine import LocalResponse, sample_responses
from megatron_entropic.tasks import Problem
from recipes.tiny_lessons import LESSONS, Lesson, TinyTask

PAD, EOS, UNK = 0, 1, 2
CHARACTERS = (*(chr(code) for code in range(32, 127)), "\n")
TOKEN_OF = {character: 3 + i for i, character in enumerate(CHARACTERS)}
CONTEXT = 512
LONGEST_RESPONSE = 12
IGNORED = -100
DEFAULT_TASK = "decompose"


@dataclass(frozen=True)
class Quality:
    """Measurements over `prompts` prompts: accuracies are fractions of 1, entropy is the token mean in nats."""

    prompts: int
    avg_at_8: float
    pass_at_8: float
    greedy: float
    entropy: float

    def __str__(self) -> str:
        return f"avg@8 {self.avg_at_8:.3f}  pass@8 {self.pass_at_8:.3f}  greedy {self.greedy:.3f}  entropy {self.entropy:.3f} nats"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every printable ASCII character and the newline is one token; 99 ids with <pad>, <eos> and <unk>; no BOS."""
    vocab = {"<pad>": PAD, "<eos>": EOS, "<unk>": UNK, **TOKEN_OF}
    characters = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def build_model(seed: int) -> Qwen3ForCausalLM:
    """A fresh 3-layer Qwen3 of 0.47 million float32 parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=3 + len(CHARACTERS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.08,  # about 1 / sqrt(hidden): the usual 0.02 costs twice the steps at this width
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return Qwen3ForCausalLM(config).to(torch.float32)


def ids_of(text: str) -> list[int]:
    return [TOKEN_OF[character] for character in text]


def training_batch(rng: random.Random, lesson: Lesson, size: int) -> tuple[Tensor, Tensor]:
    """Examples of `lesson`: (tokens_BT, labels_BT), labels IGNORED on prompt and padding."""
    tokens, labels = [], []
    for _ in range(size):
        prompt_text, answer_text = lesson.example(rng)
        prompt, answer = ids_of(prompt_text), [*ids_of(answer_text), EOS]
        tokens.append(prompt + answer)
        labels.append([IGNORED] * len(prompt) + answer)
    return right_padded(tokens, PAD), right_padded(labels, IGNORED)


def right_padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """int64 [B, longest row]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def sample(model: Qwen3ForCausalLM, problems: Sequence[Problem], temperature: float, seed: int) -> list[LocalResponse]:
    """One response to each problem."""
    uniforms_BT = np.random.default_rng(seed).random((len(problems), LONGEST_RESPONSE))
    prompts = [ids_of(problem.prompt) for problem in problems]
    return sample_responses(model, prompts, uniforms_BT, samples_per_prompt=1, temperature=temperature, eos_ids=(EOS,))


def is_right(task: TinyTask, problem: Problem, response: LocalResponse) -> bool:
    if response.finish_reason != "stop" or min(response.ids[:-1], default=0) < 3:
        return False
    return task.score(problem, "".join(CHARACTERS[token - 3] for token in response.ids[:-1])) == 1.0


@torch.inference_mode()
def mean_entropy(model: Qwen3ForCausalLM, problems: Sequence[Problem], responses: Sequence[LocalResponse]) -> float:
    """Token mean of H = logsumexp(z) - sum_i pi_i z_i over all response tokens, the end of sequence included (nats)."""
    prompts = [ids_of(problem.prompt) for problem in problems]
    tokens_BT = right_padded([[*p, *r.ids] for p, r in zip(prompts, responses, strict=True)], PAD)
    labels_BT = right_padded([[IGNORED] * len(p) + list(r.ids) for p, r in zip(prompts, responses, strict=True)], IGNORED)
    log_pi_BTV = model(tokens_BT[:, :-1]).logits.float().log_softmax(-1)
    entropy_BT = -(log_pi_BTV.exp() * log_pi_BTV).sum(-1)
    return float(entropy_BT[labels_BT[:, 1:] != IGNORED].mean())


def measure(model: Qwen3ForCausalLM, task: TinyTask, prompts: int) -> Quality:
    """Samples `prompts` problems 8 times at temperature 1, and once greedily (temperature 1e-4)."""
    model.eval()
    problems = [task.problem(index) for index in range(prompts)]
    problems_8 = [problem for problem in problems for _ in range(8)]
    responses = sample(model, problems_8, 1.0, task.seed)
    right_P8 = np.array([is_right(task, p, r) for p, r in zip(problems_8, responses, strict=True)]).reshape(prompts, 8)
    greedy = [is_right(task, p, r) for p, r in zip(problems, sample(model, problems, 1e-4, task.seed), strict=True)]
    entropy = mean_entropy(model, problems_8, responses)
    return Quality(prompts, float(right_P8.mean()), float(right_P8.any(1).mean()), float(np.mean(greedy)), entropy)


def warm_up(
    model: Qwen3ForCausalLM, lesson: Lesson, *, seed: int, steps: int, minutes: float, accuracy: float, batch: int, lr: float
) -> str:
    """Trains until avg@8 first reaches `accuracy`, for at most `steps` steps and `minutes`. Returns how it ended."""
    task = lesson.task(seed)
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    started = time.monotonic()
    for step in range(1, steps + 1):
        model.train()
        optimizer.param_groups[0]["lr"] = lr * min(1.0, step / 20)
        tokens_BT, labels_BT = training_batch(rng, lesson, batch)
        logits_BTV = model(tokens_BT[:, :-1]).logits
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        elapsed = time.monotonic() - started
        if step % 50 == 0 or step == steps:
            quality = measure(model, task, 128)
            print(f"step {step:5d}  {elapsed:5.0f} s  loss {loss.item():.4f}  {quality}", flush=True)
            if quality.avg_at_8 >= accuracy:
                return f"{step} steps, ended by avg@8 on 128 prompts reaching {accuracy:g}"
        if elapsed > 60 * minutes:
            return f"{step} steps, ended by --minutes {minutes:g}"
    return f"{steps} steps, ended by --steps"


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, card: str, out: Path) -> None:
    """Writes the Hugging Face directory `out`; every file appears whole."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(do_sample=True, bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        settings_file = Path(partial, "tokenizer_config.json")
        # The name every release of transformers knows; release 5 writes its own.
        settings = json.loads(settings_file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings_file.write_text(json.dumps(settings, indent=2) + "\n")
        Path(partial, "README.md").write_text(card)
        for file in sorted(Path(partial).iterdir()):
            file.chmod(0o644)  # weights are written for the owner alone
            with file.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(file, out / file.name)


def model_card(quality: Quality, parameters: int, course: str, arguments: argparse.Namespace) -> str:
    """The README.md that travels with the model."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "tokenizers", "numpy"))
    lesson = LESSONS[arguments.task]
    chosen = "" if arguments.task == DEFAULT_TASK else f"--task {arguments.task} "
    return f"""# tiny-{arguments.task}

A {parameters / 1e6:.2f} million parameter Qwen3 (3 layers, hidden size 128, 4 heads of 32, 2 key-value heads, float32) that answers
{lesson.about}

| measured on {quality.prompts} prompts | value |
|---|---|
| avg@8, temperature 1 | {quality.avg_at_8:.3f} |
| pass@8, temperature 1 | {quality.pass_at_8:.3f} |
| greedy accuracy | {quality.greedy:.3f} |
| entropy, token mean over sampled responses, temperature 1 | {quality.entropy:.3f} nats |

* Tokenizer: one token per printable ASCII character and newline, plus `<pad>` (0), `<eos>` (1), `<unk>` (2): 99 ids, no BOS.
* Data: {lesson.data}
* Training: AdamW, learning rate {arguments.lr:g}, {arguments.batch} answers a step, seed {arguments.seed};
  {course}.
* Made on {date.today().isoformat()} with {versions}, on a CPU, by

      python recipes/make_tiny_model.py {chosen}--out models/tiny-{arguments.task}

* Licence: Apache-2.0, like the project. Good for nothing but {lesson.use}.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--task", choices=sorted(LESSONS), default=DEFAULT_TASK, help="what the model is to learn")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, help="train for at most this many steps; by default the task's own number")
    parser.add_argument("--minutes", type=float, default=30.0, help="train for at most this long")
    parser.add_argument("--accuracy", type=float, help="stop when avg@8 first reaches this; by default the task's own")
    parser.add_argument("--seed", type=int, default=0, help="seeds weights, data and evaluation")
    parser.add_argument("--batch", type=int, default=128, help="answers per step")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    lesson = LESSONS[arguments.task]
    model = build_model(arguments.seed)
    course = warm_up(
        model,
        lesson,
        seed=arguments.seed,
        steps=lesson.steps if arguments.steps is None else arguments.steps,
        minutes=arguments.minutes,
        accuracy=lesson.accuracy if arguments.accuracy is None else arguments.accuracy,
        batch=arguments.batch,
        lr=arguments.lr,
    )
    quality = measure(model, lesson.task(arguments.seed), 512)
    card = model_card(quality, sum(p.numel() for p in model.parameters()), course, arguments)
    save(model, build_tokenizer(), card, arguments.out)
    print(f"{arguments.out}: {course}; {quality}")


if __name__ == "__main__":
    main()
