"""MoE in Megatron-Core: its configuration, its router, and which parameters belong to which expert.

Experts are whole on their rank (never split over tensor ranks) and spread over the expert-parallel ranks, which are taken out of
the tensor x data ranks of a pipeline stage. No token is dropped: what an expert gets, it computes.

Shapes: T tokens of this rank, E experts, H hidden size.
"""

import re
from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor, nn

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.tables import canonical_name

_LOCAL_EXPERT = re.compile(r"(?<=\.mlp\.experts\.local_experts\.)\d+(?=\.)")


class Router(TopKRouter):  # type: ignore[misc]  # Megatron-Core is untyped
    """Chooses as transformers and vLLM do: logits in the model's dtype, everything that follows in float32.

    Megatron-Core's own would either round the probabilities to bfloat16 too, or compute the logits in float32: near-ties would
    then send a token to other experts in training than in sampling.
    """

    def gating(self, input: Tensor) -> Tensor:
        """[T, 1, H] -> logits [T, 1, E] float32."""
        return F.linear(input, self.weight).float()


def moe_settings(arch: Architecture, expert_ranks: int, *, grouped: bool) -> dict[str, Any]:
    """Megatron-Core's settings of the architecture's experts over `expert_ranks` ranks; those of no experts for a dense model.

    `grouped`: a rank's experts are one layer of Transformer Engine's, which multiplies all their tokens at once.
    """
    # The dispatcher is unused without experts, but the default is refused beside variable sequence lengths.
    settings: dict[str, Any] = {"moe_token_dispatcher_type": "alltoall"}
    if arch.num_experts is None:
        return settings
    return settings | {
        "num_moe_experts": arch.num_experts,
        "moe_router_topk": arch.num_experts_per_token,
        "moe_ffn_hidden_size": arch.ffn_hidden_size,
        # The softmax over the chosen experts' logits is the softmax over all of them, scaled to sum to 1 over the chosen.
        "moe_router_pre_softmax": not arch.norm_topk_prob,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": grouped,
        "expert_model_parallel_size": expert_ranks,
        "expert_tensor_parallel_size": 1,
    }


def use_router(layer: ModuleSpec) -> None:
    """Puts our Router into a layer specification that has an MoE block."""
    layer.submodules.mlp.submodules.router = Router


def mark_experts(model: nn.Module) -> None:
    """Has the gradients of all experts reduced over the ranks that hold the same expert. To be called before DDP is built.

    Megatron-Core marks them so only when there are several expert-parallel ranks. With one, and several tensor ranks, each of
    those routes its own tokens to its own copy of every expert, and their gradients would never be added.
    """
    for name, parameter in model.named_parameters():
        if not _LOCAL_EXPERT.search(canonical_name(name)):
            continue
        parameter.allreduce = False  # type: ignore[attr-defined]  # Megatron-Core's protocol
        if not hasattr(parameter, "tensor_model_parallel"):
            # Transformer Engine 2.20 forgets it for grouped experts, and the gradient norm would leave out those of all tensor
            # ranks but the first.
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0 if "linear_fc1" in name else 1, stride=1)


def global_expert_name(parameter: str, first_expert: int) -> str:
    """The canonical name `parameter` with its expert counted over all ranks; `first_expert`: the global number of this rank's first."""
    return _LOCAL_EXPERT.sub(lambda found: str(first_expert + int(found.group())), parameter)
