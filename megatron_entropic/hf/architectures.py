"""The decoder architectures the policy can be, read from a Hugging Face config.json, with everything else refused by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

LLAMA3_ROPE_CONSTANTS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What Megatron-Core's Llama 3 rope scaling is fixed to; only its factor is a setting."""


class _Window(Enum):
    """What decides whether attention is limited to a sliding window."""

    OFF_BY_SWITCH = "use_sliding_window, which must be false"
    NONE_BY_DEFAULT = "sliding_window; absent means none"
    SOME_BY_DEFAULT = "sliding_window; absent means transformers' default for the family"


_DEFAULT_WINDOW = 4096
"""transformers' sliding_window of a Mistral model whose config.json does not say, in versions 4 and 5."""


@dataclass(frozen=True)
class _Family:
    """What tells one architecture from another."""

    qkv_bias: bool
    qk_norm: bool
    default_head_dim: bool
    """Whether head_dim may be left out of config.json, meaning hidden_size / num_attention_heads."""
    ffn_field: str = "intermediate_size"
    """The field with the inner size of the MLP, or of every expert."""
    expert_fields: tuple[str, ...] = ()
    """The fields with the number of experts, by transformers' versions; none: a dense model."""
    always_normalized_experts: bool = False
    """Whether the weights of a token's experts always sum to 1, instead of as norm_topk_prob says."""
    window: _Window = _Window.OFF_BY_SWITCH


FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family(qkv_bias=False, qk_norm=False, default_head_dim=True),
    "Qwen2ForCausalLM": _Family(qkv_bias=True, qk_norm=False, default_head_dim=True),
    "Qwen3ForCausalLM": _Family(qkv_bias=False, qk_norm=True, default_head_dim=False),
    "MistralForCausalLM": _Family(qkv_bias=False, qk_norm=False, default_head_dim=True, window=_Window.SOME_BY_DEFAULT),
    "Qwen3MoeForCausalLM": _Family(
        qkv_bias=False,
        qk_norm=True,
        default_head_dim=True,
        ffn_field="moe_intermediate_size",
        expert_fields=("num_experts", "num_local_experts"),
    ),
    "MixtralForCausalLM": _Family(
        qkv_bias=False,
        qk_norm=False,
        default_head_dim=True,
        expert_fields=("num_local_experts", "num_experts"),
        always_normalized_experts=True,
        window=_Window.NONE_BY_DEFAULT,
    ),
}

# Fields that must have this value or be absent: the policy has no other way to compute them.
_FIXED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "router_jitter_noise": 0.0,
}


@dataclass(frozen=True)
class Architecture:
    """The shape of a decoder-only transformer: grouped-query attention, rotary positions, RMSNorm, SwiGLU."""

    architecture: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """Inner size of the MLP; in a mixture of experts, of each expert."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    """None, or Llama 3's: {"rope_type": "llama3", "factor": ..., and LLAMA3_ROPE_CONSTANTS}."""
    norm_eps: float
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    num_experts: int | None = None
    """Experts of every layer's mixture; None: a dense model, in which the next two mean nothing."""
    num_experts_per_token: int = 0
    norm_topk_prob: bool = True
    """Whether the router's weights of a token's experts are scaled to sum to 1."""

    @classmethod
    def from_hf(cls, hf_dir: Path) -> "Architecture":
        """Reads `hf_dir`/config.json as transformers 4 or 5 wrote it.

        Raises ValueError naming the file and the field when the architecture is unknown, a field is missing, or a value asks
        for something the policy does not compute exactly.
        """
        fields = _Fields(Path(hf_dir) / "config.json")
        name = fields.architecture()
        family = FAMILIES[name]
        for field, value in _FIXED.items():
            fields.require_fixed(field, value)
        fields.require_full_attention(family.window)
        hidden_size, num_heads = fields.positive_int("hidden_size"), fields.positive_int("num_attention_heads")
        num_kv_heads = fields.positive_int("num_key_value_heads")
        if num_heads % num_kv_heads:
            raise fields.error("num_key_value_heads", f"= {num_kv_heads} does not divide num_attention_heads = {num_heads}")
        if family.default_head_dim and fields.get("head_dim") is None:
            if hidden_size % num_heads:
                raise fields.error("num_attention_heads", f"= {num_heads} does not divide hidden_size = {hidden_size}")
            head_dim = hidden_size // num_heads
        else:
            head_dim = fields.positive_int("head_dim")
        rope_theta, rope_scaling = fields.rope()
        return cls(
            architecture=name,
            num_layers=fields.positive_int("num_hidden_layers"),
            hidden_size=hidden_size,
            ffn_hidden_size=fields.positive_int(family.ffn_field),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=fields.positive_int("vocab_size"),
            max_positions=fields.positive_int("max_position_embeddings"),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            norm_eps=fields.positive_float("rms_norm_eps"),
            tied_embeddings=fields.boolean("tie_word_embeddings", default=False),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            **_mixture(fields, family),
        )


def _mixture(fields: "_Fields", family: _Family) -> dict[str, Any]:
    """The fields of a mixture of experts; none for a dense model."""
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
    return {"num_experts": experts, "num_experts_per_token": per_token, "norm_topk_prob": normalized}


class _Fields:
    """The fields of one config.json; every error names the file and the field."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path}: no such file; a Hugging Face model directory has a config.json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as problem:
            raise ValueError(f"{path}: not valid JSON: {problem}") from problem
        if not isinstance(values, dict):
            raise ValueError(f"{path}: holds a {type(values).__name__}, not an object")
        self.values: dict[str, Any] = values

    def error(self, field: str, problem: str) -> ValueError:
        return ValueError(f"{self.path}: field {field} {problem}")

    def get(self, field: str) -> Any:
        return self.values.get(field)

    def architecture(self) -> str:
        names = self.get("architectures")
        if not (isinstance(names, list) and len(names) == 1 and names[0] in FAMILIES):
            raise self.error("architectures", f"= {names!r} is not supported; supported are {sorted(FAMILIES)}, one at a time")
        return str(names[0])

    def positive_int(self, field: str) -> int:
        value = self.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(field, self._not(value, "a positive integer"))
        return value

    def one_of(self, names: tuple[str, ...]) -> int:
        """The positive integer that has one of these names; where several are there, they must agree."""
        present = [name for name in names if self.get(name) is not None] or [names[0]]
        values = [self.positive_int(name) for name in present]
        if len(set(values)) > 1:
            raise self.error(present[1], f"= {values[1]} contradicts {present[0]} = {values[0]}")
        return values[0]

    def positive_float(self, field: str) -> float:
        return self._positive_float(field, self.get(field))

    def boolean(self, field: str, default: bool) -> bool:
        value = self.values.get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, self._not(value, "true or false"))
        return value

    def require_fixed(self, field: str, supported: Any) -> None:
        if field in self.values and self.values[field] != supported:
            raise self.error(field, f"= {self.values[field]!r} is not supported; it must be {supported!r}")

    def require_full_attention(self, window: _Window) -> None:
        if window is not _Window.OFF_BY_SWITCH:
            self._require_wide_window(_DEFAULT_WINDOW if window is _Window.SOME_BY_DEFAULT else None)
        layer_types = self.get("layer_types")
        if layer_types is not None and set(layer_types) != {"full_attention"}:
            raise self.error("layer_types", f"= {layer_types!r} is not supported; every layer must be 'full_attention'")

    def _require_wide_window(self, default: int | None) -> None:
        size, positions = self.values.get("sliding_window", default), self.positive_int("max_position_embeddings")
        if size is not None and not (isinstance(size, int) and size >= positions):
            stated = f"= {size!r}" if "sliding_window" in self.values else f"is missing, which means {size},"
            raise self.error(
                "sliding_window", f"{stated} is not supported; it must be null or at least max_position_embeddings = {positions}"
            )

    def rope(self) -> tuple[float, dict[str, Any] | None]:
        """(theta, scaling) from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4)."""
        if self.get("rope_parameters") is not None:
            field, parameters = "rope_parameters", self.values["rope_parameters"]
            theta_field, theta = "rope_parameters.rope_theta", None
            if isinstance(parameters, dict):
                theta = parameters.get("rope_theta")
        else:
            field, parameters = "rope_scaling", self.get("rope_scaling") or {}
            theta_field, theta = "rope_theta", self.get("rope_theta")
        if not isinstance(parameters, dict):
            raise self.error(field, self._not(parameters, "an object"))
        for holder, name in ((self.values, "partial_rotary_factor"), (parameters, f"{field}.partial_rotary_factor")):
            if holder.get("partial_rotary_factor", 1.0) != 1.0:
                raise self.error(name, f"= {holder['partial_rotary_factor']!r} is not supported; it must be 1.0")
        return self._positive_float(theta_field, theta), self._rope_scaling(field, parameters)

    def _rope_scaling(self, field: str, parameters: dict[str, Any]) -> dict[str, Any] | None:
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind == "default":
            return None
        if kind != "llama3":
            raise self.error(f"{field}.rope_type", f"= {kind!r} is not supported; supported are 'default' and 'llama3'")
        scaling: dict[str, Any] = {"rope_type": "llama3", "factor": self._positive_float(f"{field}.factor", parameters.get("factor"))}
        for name, supported in LLAMA3_ROPE_CONSTANTS.items():
            if parameters.get(name) != supported:
                raise self.error(f"{field}.{name}", f"= {parameters.get(name)!r} is not supported; it must be {supported!r}")
            scaling[name] = supported
        return scaling

    def _positive_float(self, field: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(field, self._not(value, "a positive number"))
        return float(value)

    @staticmethod
    def _not(value: Any, wanted: str) -> str:
        return f"is missing; it must be {wanted}" if value is None else f"= {value!r} is not {wanted}"
