"""Plugin for vLLM's processes: the key check of the front end, and the receiving end of weight synchronisation.

Importing this module registers the weight-transfer backends `entropic_gloo` and `entropic_nccl`; vLLM imports it in every
worker through `--worker-extension-cls` and in the front end through `--middleware`.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor, nn
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from megatron_entropic.rollout.vllm.server_proof import CHALLENGE, PROOF, proof_of
from megatron_entropic.rollout.weight_sync.buckets import entries_of, unpack
from megatron_entropic.rollout.weight_sync.checksum import WeightsChecksum
from megatron_entropic.rollout.weight_sync.gloo_group import WeightGroup, visit_store

OPEN_PATHS = ("/health",)


class RequireKey:
    """ASGI middleware: every path but /health, under every method, needs `Authorization: Bearer $VLLM_API_KEY`.

    On /health it proves that it has that key to whoever asks (server_proof.py).

    vLLM's own check covers only /v1, /v2, /inference and /cohere; the endpoints that pause the server, load weights into it or
    call methods of its workers would be open to every local user.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.key = os.environ["VLLM_API_KEY"]
        self.key_digest = _digest(self.key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["path"] in OPEN_PATHS or self._authorised(scope):
            await self.app(scope, receive, self._proving(scope, send))
        else:
            await JSONResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)

    def _proving(self, scope: Scope, send: Send) -> Send:
        """`send` with the answer to the request's challenge, if there is one, among the response's headers."""
        challenge = dict(scope["headers"]).get(CHALLENGE.encode(), b"").decode("latin-1")
        if not challenge or not scope.get("server"):
            return send
        header = (PROOF.encode(), proof_of(self.key, challenge, scope["server"][1]).encode())

        async def prove(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        return prove

    def _authorised(self, scope: Scope) -> bool:
        header = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = header.partition(b" ")
        return scheme.lower() == b"bearer" and secrets.compare_digest(_digest(key), self.key_digest)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class ReceivedModel:
    """Stands before a model during an update: checksums what arrives, loads it, and remembers which parameters it filled.

    The keys of `tied` are parameters that no update contains, because they are others of the model.
    """

    def __init__(self, model: Any, tied: Mapping[str, str]) -> None:
        self.model = model
        self.expected = {name for name, _ in model.named_parameters()} - tied.keys()
        self.filled: set[str] = set()
        self.checksum = WeightsChecksum()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        received = list(weights)
        self.checksum.update(received)
        self.filled |= self.model.load_weights(received)

    def finish(self) -> str:
        """The checksum of all that was loaded. Raises RuntimeError naming parameters that the update left as they were."""
        missing = sorted(self.expected - self.filled)
        if missing:
            raise RuntimeError(f"the weight update did not contain {len(missing)} parameters of the model, e.g. {missing[:3]}")
        return self.checksum.hexdigest()


def tied_parameters(model: nn.Module) -> dict[str, str]:
    """The names under which `model` holds a parameter once more, each with the first name of that parameter.

    With tied embeddings: lm_head.weight. To be asked before an update begins: layerwise reload gives every layer its own.
    """
    first_names: dict[nn.Parameter, str] = {}
    names = {name: first_names.setdefault(parameter, name) for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {name: first for name, first in names.items() if name != first}


def renew_tied_layers(model: nn.Module, tied: Mapping[str, str]) -> None:
    """Has each layer that holds another's parameter process the values that an update gave it. Raises RuntimeError if it lost it.

    vLLM 0.32 processes a layer when its own weights are loaded. On a CPU an output layer computes with a packed copy: without
    this a tied one would keep its copy of the earlier weights.
    """
    for name, first in tied.items():
        if model.get_parameter(name) is not model.get_parameter(first):
            raise RuntimeError(f"the weight update separated {name} from {first}, to which it is tied")
        layer: Any = model.get_submodule(name.rpartition(".")[0])
        layer.quant_method.process_weights_after_loading(layer)


def forget_packed_experts(model: Any) -> None:
    """Has vLLM build its CPU kernel for MoE again when the next weights are loaded, which packs them for it.

    vLLM 0.32 packs experts' weights only when it builds a layer's kernel: after an update the old kernel would take the new,
    unpacked weights for packed ones, and the server would answer nonsense.
    """
    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        experts = getattr(getattr(method, "moe_kernel", None), "fused_experts", None)
        if any(kind.__name__ == "CPUUnquantizedExperts" for kind in type(experts).__mro__):
            method.moe_kernel = None


class CheckedUpdates:
    """Mixin of a vLLM weight-transfer engine: layerwise reload around each update, and the checksum of what was loaded."""

    model: Any
    model_config: Any
    tied: Mapping[str, str]
    received: ReceivedModel | None = None
    checksum: str = "initial"

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.checksum = "incomplete"
        forget_packed_experts(self.model)
        self.tied = tied_parameters(self.model)
        initialize_layerwise_reload(self.model)
        self.received = ReceivedModel(self.model, self.tied)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        assert self.received is not None
        finalize_layerwise_reload(self.model, self.model_config)
        renew_tied_layers(self.model, self.tied)
        self.checksum = self.received.finish()
        self.received = None


@dataclass
class GlooInitInfo(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is not typed here
    """Address of the sender's store, this server's address and ranks in the group of `world_size`, and the timeout in seconds."""

    address: str
    port: int
    own_address: str
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The manifest of one bucket."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(CheckedUpdates, WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):  # type: ignore[misc]
    """Receives buckets broadcast over gloo by rank 0, the trainer; each tensor-parallel rank of the server is one more rank."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group: WeightGroup | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        info = init_info
        store = visit_store(info.address, info.port, info.world_size, info.timeout_s)
        rank = info.rank_offset + self.parallel_config.rank
        self.group = WeightGroup(store, info.own_address, rank=rank, world_size=info.world_size, timeout_s=info.timeout_s)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        if self.group is None or self.received is None:
            raise RuntimeError("weights arrived before init_weight_transfer_engine and start_weight_update")
        entries = entries_of(update_info.names, update_info.dtype_names, update_info.shapes)
        # A fresh buffer for every bucket: the layerwise reload keeps views of it until a layer is complete.
        flat_M = torch.empty(sum(entry.nbytes for entry in entries), dtype=torch.uint8, device="cpu")
        self.group.broadcast(flat_M)
        self.received.load_weights(unpack(flat_M, entries))

    def shutdown(self) -> None:
        self.group = None


class CheckedNCCLWeightTransferEngine(CheckedUpdates, NCCLWeightTransferEngine):  # type: ignore[misc]
    """vLLM's NCCL engine with the checksum and completeness check of `CheckedUpdates`."""

    def receive_weights(self, update_info: Any) -> None:
        if self.received is None:
            raise RuntimeError("weights arrived before start_weight_update")
        model = self.model
        self.model = self.received  # the engine only calls load_weights on it
        try:
            super().receive_weights(update_info)
        finally:
            self.model = model


class WorkerExtension:
    """Methods that vLLM adds to its workers; called by name through /collective_rpc."""

    weight_transfer_engine: CheckedUpdates

    def received_checksum(self) -> str:
        """Checksum of the last complete update; "initial" before the first, "incomplete" during or after a failed one."""
        return self.weight_transfer_engine.checksum


def register() -> None:
    """Makes both backends known to vLLM, once per process."""
    for backend, engine in (("entropic_gloo", GlooWeightTransferEngine), ("entropic_nccl", CheckedNCCLWeightTransferEngine)):
        if backend not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(backend, engine)


register()
