"""The decoder architectures the policy can be, read from a Hugging Face config.json, with everything else refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_entropic.hf.config_json import ConfigFields
from megatron_entropic.hf.rope import Rope, read_rope
from megatron_entropic.system.named_functions import named_object


class Window(Enum):
    """The rule by which attention is limited to a sliding window."""

    SWITCHED_BY_LAYER = "use_sliding_window, for the layers from max_window_layers on"
    SWITCHED = "use_sliding_window, for every layer"
    NONE_BY_DEFAULT = "sliding_window; absent means none"
    SOME_BY_DEFAULT = "sliding_window; absent means transformers' default for the family"


_DEFAULT_WINDOW, _DEFAULT_WINDOW_LAYERS = 4096, 28
"""transformers' sliding_window and max_window_layers where config.json does not say, in versions 4 and 5."""


@dataclass(frozen=True)
class MoENames:
    """An architecture's Hugging Face names of a layer's MoE block and of an expert's three matrices."""

    block: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class Family:
    """Differences between architectures: one row of FAMILIES, or of a package's own (CONTRIBUTING.md)."""

    qkv_bias: bool
    qk_norm: bool
    max_positions: int
    """transformers' max_position_embeddings where config.json does not say; so are the four below."""
    kv_heads: int | None = None
    """None: as many as heads."""
    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    ffn_field: str = "intermediate_size"
    """The field with the inner size of the MLP, or of every expert."""
    expert_fields: tuple[str, ...] = ()
    """The fields with the number of experts, by transformers' versions; none: a dense model."""
    always_normalized_experts: bool = False
    """Whether the weights of a token's experts always sum to 1, instead of as norm_topk_prob says."""
    moe_names: MoENames | None = None
    """None: a dense model."""
    window: Window = Window.SWITCHED_BY_LAYER


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(qkv_bias=False, qk_norm=False, max_positions=2048, window=Window.NONE_BY_DEFAULT),
    "Qwen2ForCausalLM": Family(qkv_bias=True, qk_norm=False, max_positions=32768, kv_heads=32),
    "Qwen3ForCausalLM": Family(qkv_bias=False, qk_norm=True, max_positions=32768, kv_heads=32, head_dim=128),
    "MistralForCausalLM": Family(qkv_bias=False, qk_norm=False, max_positions=131072, kv_heads=8, window=Window.SOME_BY_DEFAULT),
    "Qwen3MoeForCausalLM": Family(
        qkv_bias=False,
        qk_norm=True,
        max_positions=32768,
        kv_heads=4,
        ffn_field="moe_intermediate_size",
        expert_fields=("num_experts", "num_local_experts"),
        moe_names=MoENames("mlp", "gate_proj", "up_proj", "down_proj"),
        window=Window.SWITCHED,
    ),
    "MixtralForCausalLM": Family(
        qkv_bias=False,
        qk_norm=False,
        max_positions=131072,
        kv_heads=8,
        norm_eps=1e-5,
        rope_theta=1e6,
        expert_fields=("num_local_experts", "num_experts"),
        always_normalized_experts=True,
        moe_names=MoENames("block_sparse_moe", "w1", "w3", "w2"),
        window=Window.NONE_BY_DEFAULT,
    ),
}

FAMILY_ENTRY_POINTS = "megatron_entropic.architectures"
"""Group of entry points by which an installed package brings a Family of its own, under the name in config.json."""

# Fields that must have this value or be absent: the policy has no other way to compute them.
_FIXED: Mapping[str, Any] = {"hidden_act": "silu", "decoder_sparse_step": 1, "router_jitter_noise": 0.0}
_FIXED_OR_NULL: Mapping[str, Any] = {"attention_bias": False, "mlp_bias": False, "quantization_config": None, "mlp_only_layers": []}


@dataclass(frozen=True)
class Architecture:
    """The shape of a decoder-only transformer: grouped-query attention, rotary positions, RMSNorm, SwiGLU."""

    architecture: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """Inner size of the MLP; in an MoE model, of each expert."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rope: Rope
    norm_eps: float
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    num_experts: int | None = None
    """Experts of every layer's MoE block; None: a dense model, in which the next two mean nothing."""
    num_experts_per_token: int = 0
    norm_topk_prob: bool = True
    """Whether the router's weights of a token's experts are scaled to sum to 1."""
    moe_names: MoENames | None = None

    @classmethod
    def from_hf(cls, hf_dir: Path) -> "Architecture":
        """Reads `hf_dir`/config.json as transformers 4 or 5 wrote it.

        Raises ValueError naming the file and the field when the architecture is unknown, a field is missing, or a value asks
        for something the policy does not compute exactly.
        """
        fields = ConfigFields(Path(hf_dir) / "config.json")
        name, family = _family(fields)
        for fixed, value in _FIXED.items():
            fields.require_fixed(fixed, value)
        for fixed, value in _FIXED_OR_NULL.items():
            fields.require_fixed(fixed, value, null_is_supported=True)
        fields.require_agreement("dtype", "torch_dtype")
        max_positions = fields.positive_int("max_position_embeddings", family.max_positions)
        _require_full_attention(fields, family.window, max_positions)
        return cls(
            architecture=name,
            num_layers=fields.positive_int("num_hidden_layers"),
            ffn_hidden_size=fields.positive_int(family.ffn_field),
            vocab_size=fields.positive_int("vocab_size"),
            max_positions=max_positions,
            rope=read_rope(fields, family.rope_theta, max_positions),
            norm_eps=fields.positive_float("rms_norm_eps", fields.values.get("rms_norm_eps", family.norm_eps)),
            tied_embeddings=fields.boolean("tie_word_embeddings", default=False),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            **_heads(fields, family),
            **_moe(fields, family),
        )


def _family(fields: ConfigFields) -> tuple[str, Family]:
    """The architecture's name and row: of FAMILIES, or of an installed package's entry points."""
    names = fields.get("architectures")
    outside = {point.name for point in metadata.entry_points(group=FAMILY_ENTRY_POINTS)}
    known = sorted({*FAMILIES, *outside})
    if not (isinstance(names, list) and len(names) == 1 and names[0] in known):
        raise fields.error("architectures", f"= {names!r} is not supported; supported are {known}, one at a time")
    name = str(names[0])
    family = FAMILIES.get(name) or named_object("architectures", name, {}, FAMILY_ENTRY_POINTS)
    if not isinstance(family, Family):
        raise fields.error(
            "architectures", f"= {name}: its entry point of {FAMILY_ENTRY_POINTS} names no Family but {type(family).__name__}"
        )
    return name, family


def _heads(fields: ConfigFields, family: Family) -> dict[str, Any]:
    """The hidden size and how attention divides it."""
    hidden_size, num_heads = fields.positive_int("hidden_size"), fields.positive_int("num_attention_heads")
    if fields.values.get("num_key_value_heads", family.kv_heads) is None:
        num_kv_heads = num_heads
    else:
        num_kv_heads = fields.positive_int("num_key_value_heads", family.kv_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"= {num_kv_heads} does not divide num_attention_heads = {num_heads}")
    if family.head_dim is None and fields.get("head_dim") is None:
        if hidden_size % num_heads:
            raise fields.error("num_attention_heads", f"= {num_heads} does not divide hidden_size = {hidden_size}")
        head_dim = hidden_size // num_heads
    else:
        head_dim = fields.positive_int("head_dim", family.head_dim)
    if head_dim % 2:
        raise fields.error("head_dim", f"= {head_dim} is odd: rotary embeddings turn pairs")
    return {"hidden_size": hidden_size, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}


def _moe(fields: ConfigFields, family: Family) -> dict[str, Any]:
    """The fields of an MoE model; none for a dense model."""
    if not family.expert_fields:
        return {}
    experts = fields.one_of(family.expert_fields)
    per_token = fields.positive_int("num_experts_per_tok")
    if per_token > experts:
        raise fields.error("num_experts_per_tok", f"= {per_token} is more than the model's {experts} experts")
    normalized = family.always_normalized_experts or fields.boolean("norm_topk_prob", default=False)
    if per_token == 1 and normalized:
        raise fields.error(
            "num_experts_per_tok", "= 1 is not supported where the experts' weights are scaled to sum to 1: a router could not learn"
        )
    return {
        "num_experts": experts,
        "num_experts_per_token": per_token,
        "norm_topk_prob": normalized,
        "moe_names": family.moe_names,
    }


def _require_full_attention(fields: ConfigFields, window: Window, max_positions: int) -> None:
    """Refuses a sliding window in any layer that is shorter than the longest sequence."""
    layer_types = fields.get("layer_types")
    if layer_types is not None and set(layer_types) != {"full_attention"}:
        raise fields.error("layer_types", f"= {layer_types!r} is not supported; every layer must be 'full_attention'")
    if window in (Window.SWITCHED, Window.SWITCHED_BY_LAYER):
        if not fields.get("use_sliding_window") or _no_layer_slides(fields, window):
            return
        default: int | None = _DEFAULT_WINDOW
    else:
        default = _DEFAULT_WINDOW if window is Window.SOME_BY_DEFAULT else None
    size = fields.values.get("sliding_window", default)
    if size is not None and not (isinstance(size, int) and size >= max_positions):
        stated = f"= {size!r}" if "sliding_window" in fields.values else f"is missing, which means {size},"
        raise fields.error(
            "sliding_window", f"{stated} is not supported; it must be null or at least max_position_embeddings = {max_positions}"
        )


def _no_layer_slides(fields: ConfigFields, window: Window) -> bool:
    """Whether use_sliding_window switches on what no layer has."""
    if window is Window.SWITCHED:
        return False
    first = fields.values.get("max_window_layers", _DEFAULT_WINDOW_LAYERS)
    return fields.get("layer_types") is not None or (isinstance(first, int) and first >= fields.positive_int("num_hidden_layers"))
