"""Whether a model can be split the way the settings ask."""

from megatron_entropic.config import Config
from megatron_entropic.hf.architectures import Architecture


def check_layout(arch: Architecture, cfg: Config) -> list[str]:
    """Every reason why `arch` cannot be laid out as `cfg.parallel` says, each naming the field and legal values; [] if it can."""
    tensor, pipeline = cfg.parallel.tensor, cfg.parallel.pipeline
    problems = []
    sizes = {"attention heads": arch.num_heads, "key-value heads": arch.num_kv_heads, "feed-forward size": arch.ffn_hidden_size}
    for what, size in sizes.items():
        if size % tensor:
            problems.append(f"parallel.tensor={tensor} does not divide the model's {size} {what}; {_divisors(size)}")
    if arch.num_layers % pipeline:
        problems.append(
            f"parallel.pipeline={pipeline} does not divide the model's {arch.num_layers} layers; {_divisors(arch.num_layers)}"
        )
    if cfg.rollout.max_new_tokens >= cfg.batch.max_tokens_per_micro_batch:
        problems.append(
            f"batch.max_tokens_per_micro_batch={cfg.batch.max_tokens_per_micro_batch} leaves no room for a prompt beside "
            f"rollout.max_new_tokens={cfg.rollout.max_new_tokens}"
        )
    return problems


def _divisors(size: int) -> str:
    return "legal values: " + ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
