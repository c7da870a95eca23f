"""Tiny random Hugging Face models of every supported architecture, with nothing left at a value that hides a mistake."""

import copy
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB_SIZE = 99
TINY_DECOMPOSE = Path(__file__).resolve().parent.parent / "models" / "tiny-decompose"
DENSE = ("llama", "llama3_rope", "mistral", "qwen2", "qwen2_tied", "qwen3")
MOE = ("mixtral", "qwen3_moe")
ARCHITECTURES = DENSE + MOE

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 30000.0,  # head size 16: wavelengths below, between and above the scaling's two thresholds
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def build(kind: str) -> PreTrainedModel:
    """A float32 model with random norms and biases, the same for the same kind."""
    torch.manual_seed(7)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON, rope_parameters=rope)),
        "llama3_rope": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON, head_dim=16, rope_parameters=_LLAMA3_ROPE)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_COMMON, rope_parameters=rope)),
        "qwen2_tied": lambda: Qwen2ForCausalLM(Qwen2Config(**_COMMON, rope_parameters=rope, tie_word_embeddings=True)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_COMMON, head_dim=16, rope_parameters=rope)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**_COMMON, head_dim=16, rope_parameters=rope, sliding_window=None)),
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_COMMON, **_EXPERTS, rope_parameters=rope)),
        "qwen3_moe": lambda: Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**_COMMON, **_EXPERTS, head_dim=16, moe_intermediate_size=24, norm_topk_prob=False, rope_parameters=rope)
        ),
    }[kind]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            elif name.endswith("gate.weight"):
                parameter.normal_(0.0, 1.0)  # a router that decides, so that no rounding changes which experts it takes
            else:
                parameter.normal_(0.0, 0.15)
    return model.float().eval()


def save(kind: str, hf_dir: Path, *, tokenizer_size: int = VOCAB_SIZE) -> PreTrainedModel:
    """Saves a model of `kind` with a whitespace tokenizer of `tokenizer_size` words; returns the model."""
    model = build(kind)
    model.save_pretrained(hf_dir)
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(tokenizer_size)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(hf_dir / "tokenizer.json"))
    (hf_dir / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "odd":   "spacing"}')
    return model


def edit_config(hf_dir: Path, **changes: object) -> None:
    """Sets fields of config.json; a field set to `...` is removed."""
    path = hf_dir / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def save_divisible(hf_dir: Path) -> Path:
    """Saves a random Qwen3 that every layout of 4 ranks can hold (2 key-value heads: 4 tensor ranks share them); returns `hf_dir`.

    Its tokenizer is the tiny model's (99 ids).
    """
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = Qwen3Config(**_COMMON, head_dim=16, rope_parameters=rope, initializer_range=0.1, eos_token_id=1, pad_token_id=0)
    return _save_trainable(Qwen3ForCausalLM(config).float(), hf_dir)


def save_deepened(hf_dir: Path) -> Path:
    """Saves the tiny model with a fourth layer that does next to nothing: it earns rewards, and 2 or 4 stages can hold it."""
    model = Qwen3ForCausalLM.from_pretrained(TINY_DECOMPOSE, dtype=torch.float32)
    return _save_trainable(_with_four_layers(model), hf_dir)


def save_upcycled(hf_dir: Path, *, norm_topk_prob: bool) -> Path:
    """Saves the tiny model with a fourth layer and every MLP made an MoE block of 4 experts, slightly different copies of it.

    It earns rewards too. The weights of a token's 2 experts sum to 1 (`norm_topk_prob`) or to less.
    """
    dense = _with_four_layers(Qwen3ForCausalLM.from_pretrained(TINY_DECOMPOSE, dtype=torch.float32))
    fields = {**dense.config.to_dict(), **_EXPERTS, "moe_intermediate_size": dense.config.intermediate_size}
    for name in ("model_type", "architectures", "layer_types", "max_window_layers"):
        del fields[name]
    moe = Qwen3MoeForCausalLM(Qwen3MoeConfig(**fields, norm_topk_prob=norm_topk_prob)).float()
    theirs, generator = dense.state_dict(), torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, tensor in moe.state_dict().items():
            if name.endswith("mlp.gate.weight"):
                tensor.normal_(0.0, 0.2, generator=generator)
            elif "mlp.experts." in name:
                prefix, kind = name.split("experts.")
                parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
                whole = torch.cat([theirs[f"{prefix}{part}.weight"] for part in parts])
                tensor.copy_(whole * (1 + 0.1 * torch.randn(tensor.shape, generator=generator)))
            else:
                tensor.copy_(theirs[name])
    moe.generation_config = dense.generation_config
    return _save_trainable(moe, hf_dir)


def _with_four_layers(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    layer = copy.deepcopy(model.model.layers[-1])
    layer.self_attn.layer_idx = model.config.num_hidden_layers
    with torch.no_grad():
        for output in (layer.self_attn.o_proj, layer.mlp.down_proj):
            output.weight.mul_(0.05)
    model.model.layers.append(layer)
    model.config.num_hidden_layers += 1
    model.config.layer_types = [*model.config.layer_types, model.config.layer_types[-1]]
    return model


def _save_trainable(model: PreTrainedModel, hf_dir: Path) -> Path:
    model.save_pretrained(hf_dir)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_DECOMPOSE / name, hf_dir / name)
    return hf_dir
