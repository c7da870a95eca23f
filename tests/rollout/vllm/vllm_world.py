"""Fixtures of tests with real vLLM servers: a tiny model with a tokenizer, its log-probs by transformers, and process groups."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.rollout.vllm.fleet import VLLMFleet

EOS = 1
TEMPERATURE = 0.7
CHARACTERS = ["<pad>", "<eos>", *(chr(code) for code in range(32, 127)), "\n", "§"]


def write_tokenizer(folder: Path) -> None:
    """One token a character."""
    tokenizer = Tokenizer(models.WordLevel({text: index for index, text in enumerate(CHARACTERS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def write_model(folder: Path) -> Path:
    """A random Qwen3 of 99 tokens in `folder`, whose generation_config.json asks for top-k sampling that must not happen."""
    write_tokenizer(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(CHARACTERS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=EOS,
        bos_token_id=None,
        pad_token_id=0,
        initializer_range=0.2,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.update(do_sample=True, top_k=3, temperature=0.2)
    model.save_pretrained(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def changed(model: PreTrainedModel, seed: int) -> list[tuple[str, torch.Tensor]]:
    """All weights of `model`, by name, each moved a good deal."""
    generator = torch.Generator().manual_seed(seed)
    return [(name, weight.detach() + 0.1 * torch.randn(weight.shape, generator=generator)) for name, weight in model.named_parameters()]


def fleet_of(model_dir: Path, log_dir: Path, **settings: object) -> VLLMFleet:
    cfg = RolloutConfig(**({"temperature": TEMPERATURE, "max_new_tokens": 8, "sync_timeout_s": 120.0} | settings))  # type: ignore[arg-type]
    return VLLMFleet(cfg, model_dir=model_dir, dtype="float32", max_model_len=4096, seed=5, log_dir=log_dir)


@torch.no_grad()
def worst_log_prob_error(model: PreTrainedModel, rollouts: Sequence[Rollout]) -> float:
    """The largest difference between the rollouts' log-probs and those of `model` at TEMPERATURE, in nats."""
    worst = 0.0
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt_ids.tolist(), *rollout.response_ids.tolist()]])
        log_probs_TV = (model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1] / TEMPERATURE).log_softmax(-1)
        expected_T = log_probs_TV.gather(1, torch.tensor(rollout.response_ids.tolist())[:, None])[:, 0]
        worst = max(worst, float((expected_T - torch.tensor(rollout.log_probs)).abs().max()))
    return worst


def group_members(group: int) -> list[int]:
    """Living processes of a process group."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group and fields[0] not in "ZX":
                members.append(int(entry.name))
    return members


def becomes_true(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def kill_group(group: int, signal_number: int) -> None:
    """Signals every process of a server's group, if any is left."""
    if group_members(group):
        os.killpg(group, signal_number)
