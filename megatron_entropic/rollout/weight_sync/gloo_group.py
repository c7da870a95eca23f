"""The gloo group that weights travel over: rank 0 is the trainer, the others are one server's workers.

torch exports these classes at run time but declares them in part only, hence the `type: ignore`s.
"""

from datetime import timedelta

from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]


def host_store(address: str, world_size: int, timeout_s: float) -> TCPStore:
    """A rendezvous store on a free port of `address`; does not wait for the others. `store.port` is the port."""
    return TCPStore(address, 0, world_size, is_master=True, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def visit_store(address: str, port: int, world_size: int, timeout_s: float) -> TCPStore:
    """The store that another process hosts. Raises torch.distributed.DistError, a RuntimeError, after `timeout_s`."""
    return TCPStore(address, port, world_size, is_master=False, timeout=timedelta(seconds=timeout_s))


class WeightGroup:
    """A group of its own, independent of the process's default group.

    Creating it is collective over `world_size` ranks and raises RuntimeError when not all have come after `timeout_s`.
    Connections are made on the interface of `address`, so loopback stays loopback.
    """

    def __init__(self, store: TCPStore, address: str, *, rank: int, world_size: int, timeout_s: float) -> None:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=timeout_s)
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        self._group = ProcessGroupGloo(PrefixStore("weights", store), rank, world_size, options)

    def broadcast(self, flat_M: Tensor) -> None:
        """Fills `flat_M` (uint8 [M], host memory) with rank 0's. One broadcast; raises RuntimeError when a peer is gone or late."""
        self._group.broadcast(flat_M, 0).wait()  # type: ignore[attr-defined]
