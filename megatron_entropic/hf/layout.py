"""Whether a model can be split the way the settings ask."""

from megatron_entropic.config import BatchConfig, ParallelConfig, RolloutConfig
from megatron_entropic.hf.architectures import Architecture

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Those that vLLM's attention for CPUs is compiled for. A table, because asking vLLM costs seconds and it need not be installed."""


def check_layout(arch: Architecture, layout: ParallelConfig, batch: BatchConfig, rollout: RolloutConfig) -> list[str]:
    """Every reason why `arch` cannot be laid out as the settings say, each naming the field and legal values; [] if it can."""
    problems = split_problems(arch, layout) + server_problems(arch, rollout)
    if rollout.max_new_tokens >= batch.max_tokens_per_micro_batch:
        problems.append(
            f"batch.max_tokens_per_micro_batch={batch.max_tokens_per_micro_batch} leaves no room for a prompt beside "
            f"rollout.max_new_tokens={rollout.max_new_tokens}"
        )
    return problems


def split_problems(arch: Architecture, layout: ParallelConfig) -> list[str]:
    """Reasons why the policy cannot be split over the ranks of `layout`."""
    tensor, pipeline = layout.tensor, layout.pipeline
    divided = [
        ("parallel.tensor", tensor, "num_attention_heads", arch.num_heads),
        ("parallel.pipeline", pipeline, "num_hidden_layers", arch.num_layers),
    ]
    if arch.num_experts is None:
        divided.append(("parallel.tensor", tensor, "intermediate_size", arch.ffn_hidden_size))
    else:
        divided.append(("parallel.expert", layout.expert, "number of experts", arch.num_experts))
    problems = [
        f"{setting}={parts} does not divide the model's {field}={size}; legal values: {_divisors(size)}"
        for setting, parts, field, size in divided
        if size % parts
    ]
    if arch.num_kv_heads % tensor and tensor % arch.num_kv_heads:
        legal = ", ".join(str(n) for n in range(1, arch.num_heads + 1) if _splits_heads(arch, n))
        problems.append(
            f"parallel.tensor={tensor} is neither a divisor nor a multiple of the model's num_key_value_heads={arch.num_kv_heads}; "
            f"legal values: {legal}"
        )
    if arch.num_experts is None and layout.expert > 1:
        problems.append(f"parallel.expert={layout.expert}, but {arch.architecture} is dense; legal values: 1")
    if arch.num_experts is not None and tensor > 1 and not layout.sequence:
        problems.append(
            f"parallel.sequence=false, but {arch.architecture} over parallel.tensor={tensor} ranks needs true: every tensor rank "
            f"sends its own tokens to the experts"
        )
    return problems


def _splits_heads(arch: Architecture, tensor: int) -> bool:
    """Whether the attention heads can be split over `tensor` ranks."""
    return arch.num_heads % tensor == 0 and (arch.num_kv_heads % tensor == 0 or tensor % arch.num_kv_heads == 0)


def server_problems(arch: Architecture, rollout: RolloutConfig) -> list[str]:
    """Reasons why a vLLM server of `rollout.tensor` ranks cannot hold the model; it splits what the policy splits."""

    def legal(tensor: int) -> bool:
        return _splits_heads(arch, tensor) and arch.ffn_hidden_size % tensor == 0

    tensor = rollout.tensor
    if rollout.engine != "vllm" or legal(tensor):
        return []
    return [
        f"rollout.tensor={tensor} cannot split the model's num_attention_heads={arch.num_heads}, num_key_value_heads="
        f"{arch.num_kv_heads} and intermediate_size={arch.ffn_hidden_size}; legal values: "
        + ", ".join(str(n) for n in range(1, arch.num_heads + 1) if legal(n))
    ]


def check_serving(arch: Architecture) -> list[str]:
    """Reasons why a vLLM server on this machine has no attention kernel for the heads of `arch`; [] if it has."""
    if arch.head_dim in CPU_HEAD_SIZES or (arch.head_dim % 8 == 0 and _accelerated()):
        return []
    sizes = "multiples of 8" if _accelerated() else ", ".join(map(str, CPU_HEAD_SIZES))
    return [
        f"rollout.engine=vllm cannot serve heads of {arch.head_dim} (head_dim) on this machine, only of {sizes}; "
        "rollout.engine=local generates in this process"
    ]


def _accelerated() -> bool:
    from megatron_entropic.platform import accelerated  # brings torch: seconds that most models need not pay

    return accelerated()


def _divisors(size: int) -> str:
    return ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
