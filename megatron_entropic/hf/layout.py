"""Whether a model can be split the way the settings ask."""

from megatron_entropic.config import Config
from megatron_entropic.hf.architectures import Architecture


def check_layout(arch: Architecture, cfg: Config) -> list[str]:
    """Every reason why `arch` cannot be laid out as `cfg.parallel` says, each naming the field and legal values; [] if it can."""
    tensor, pipeline = cfg.parallel.tensor, cfg.parallel.pipeline
    divided = [
        ("parallel.tensor", tensor, "num_attention_heads", arch.num_heads),
        ("parallel.pipeline", pipeline, "num_hidden_layers", arch.num_layers),
    ]
    if arch.num_experts is None:
        divided.append(("parallel.tensor", tensor, "intermediate_size", arch.ffn_hidden_size))
    else:
        divided.append(("parallel.expert", cfg.parallel.expert, "number of experts", arch.num_experts))
    problems = [
        f"{setting}={parts} does not divide the model's {field}={size}; legal values: {_divisors(size)}"
        for setting, parts, field, size in divided
        if size % parts
    ]
    if arch.num_kv_heads % tensor and tensor % arch.num_kv_heads:
        problems.append(
            f"parallel.tensor={tensor} is neither a divisor nor a multiple of the model's num_key_value_heads={arch.num_kv_heads}"
        )
    if arch.num_experts is None and cfg.parallel.expert > 1:
        problems.append(f"parallel.expert={cfg.parallel.expert}, but {arch.architecture} is dense; legal values: 1")
    if arch.num_experts is not None and tensor > 1 and not cfg.parallel.sequence:
        problems.append(
            f"parallel.sequence=false, but {arch.architecture} over parallel.tensor={tensor} ranks needs true: every tensor rank "
            f"sends its own tokens to the experts"
        )
    if cfg.rollout.max_new_tokens >= cfg.batch.max_tokens_per_micro_batch:
        problems.append(
            f"batch.max_tokens_per_micro_batch={cfg.batch.max_tokens_per_micro_batch} leaves no room for a prompt beside "
            f"rollout.max_new_tokens={cfg.rollout.max_new_tokens}"
        )
    return problems


def _divisors(size: int) -> str:
    return ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
