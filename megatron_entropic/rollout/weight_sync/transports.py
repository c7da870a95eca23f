"""Transports of weight buckets to the servers' workers: over gloo from host memory, or over NCCL from GPU memory."""

import functools
import socket
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_entropic.config import RolloutConfig
from megatron_entropic.platform import accelerated
from megatron_entropic.rollout.vllm.client import ServerClient
from megatron_entropic.rollout.weight_sync.buckets import BUCKET_BYTES, Bucket, pack
from megatron_entropic.rollout.weight_sync.gloo_group import WeightGroup, host_store
from megatron_entropic.rollout.weight_sync.sync import Call, Transport
from megatron_entropic.system.network import address_toward
from megatron_entropic.system.rendezvous import reserve


def weight_backend(cfg: RolloutConfig) -> str:
    """The transport for this machine's devices: "nccl", or "gloo" on CPUs and where servers share GPUs with the trainer.

    NCCL refuses a group in which two ranks, here trainer and server, are on one GPU.
    """
    return "nccl" if accelerated() and not cfg.share_gpu else "gloo"


def make_transport(cfg: RolloutConfig) -> Transport:
    """The transport of `weight_backend` to servers of cfg.tensor workers each."""
    return NCCLTransport(cfg.tensor) if weight_backend(cfg) == "nccl" else GlooTransport(cfg.tensor)


class GlooTransport:
    """One group per server, so that a dead or hung server is named and holds up no other. The trainer is rank 0 of each.

    Each end connects from the address by which it reaches the other: loopback on one machine, else the network between them.
    """

    bucket_bytes = BUCKET_BYTES

    def __init__(self, tensor: int) -> None:
        self.tensor = tensor
        self._stores: list[Any] = []
        self._groups: list[tuple[ServerClient, WeightGroup]] = []

    def connect(self, servers: Sequence[ServerClient], timeout_s: float) -> dict[str, Call]:
        calls: dict[str, Call] = {}
        for server in servers:
            here = address_toward(server.host)
            store = host_store(here, self.tensor + 1, timeout_s)
            self._stores.append(store)
            info = {
                "address": here,
                "port": store.port,
                "own_address": server.host,
                "rank_offset": 1,
                "world_size": self.tensor + 1,
                "timeout_s": timeout_s,
            }
            calls[server.name] = functools.partial(_init_worker_side, server, info, timeout_s)
            calls[f"{server.name} group"] = functools.partial(self._join, server, here, store, timeout_s)
        return calls

    def _join(self, server: ServerClient, here: str, store: Any, timeout_s: float) -> None:
        try:
            group = WeightGroup(store, here, rank=0, world_size=self.tensor + 1, timeout_s=timeout_s)
        except RuntimeError as error:
            raise server.failed("the connection for weights", error) from error
        self._groups.append((server, group))

    def broadcast(self, bucket: Bucket) -> dict[str, Call]:
        flat_M = pack(bucket)
        return {f"{server.name} group": functools.partial(_broadcast, server, group, flat_M) for server, group in self._groups}

    def close(self) -> None:
        self._groups.clear()
        self._stores.clear()


def _broadcast(server: ServerClient, group: WeightGroup, flat_M: Tensor) -> None:
    try:
        group.broadcast(flat_M)
    except RuntimeError as error:
        raise server.failed("a bucket of weights", error) from error


class NCCLTransport:
    """One group of the trainer (rank 0) and all workers of all servers, through vLLM's own packed NCCL broadcast."""

    bucket_bytes = 2**30
    _ONE_CHUNK = 2**40  # never split a bucket: both sides cut where this is exceeded

    def __init__(self, tensor: int) -> None:
        self.tensor = tensor
        self._device = torch.cuda.current_device()
        self._group: Any = None

    def connect(self, servers: Sequence[ServerClient], timeout_s: float) -> dict[str, Call]:
        here = address_toward(servers[0].host)
        reserved = reserve(here)
        rendezvous = {"master_address": here, "master_port": reserved.getsockname()[1], "world_size": 1 + self.tensor * len(servers)}
        calls: dict[str, Call] = {"trainer": functools.partial(self._join, rendezvous, reserved)}
        for position, server in enumerate(servers):
            packing = {"packed": True, "packed_buffer_size_bytes": self._ONE_CHUNK, "packed_num_buffers": 1}
            info = rendezvous | packing | {"rank_offset": 1 + position * self.tensor}
            calls[server.name] = functools.partial(_init_worker_side, server, info, timeout_s)
        return calls

    def _join(self, rendezvous: dict[str, Any], reserved: socket.socket) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        torch.cuda.set_device(self._device)  # a thread starts on device 0
        with reserved:
            self._group = trainer_init(rendezvous)

    def broadcast(self, bucket: Bucket) -> dict[str, Call]:
        on_device = [(name, tensor.to(f"cuda:{self._device}", non_blocking=True)) for name, tensor in bucket]
        torch.cuda.current_stream(self._device).synchronize()  # the sending thread has a stream of its own
        return {"trainer": functools.partial(self._send, on_device)}

    def _send(self, bucket: Bucket) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        torch.cuda.set_device(self._device)
        packed_nccl_broadcast_producer(
            iterator=iter(bucket),
            group=self._group,
            src=0,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=self._ONE_CHUNK,
            num_buffers=1,
        )

    def close(self) -> None:
        self._group = None


def _init_worker_side(server: ServerClient, info: dict[str, Any], timeout_s: float) -> None:
    server.call("POST", "/init_weight_transfer_engine", timeout_s=timeout_s, json={"init_info": info})
