"""The gloo group that weights travel over: one rank for the trainer, the others for one server's workers."""

from datetime import timedelta

from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore


def host_store(address: str, world_size: int, timeout: timedelta) -> TCPStore:
    """A rendezvous store on a free port of `address`; does not wait for the others. `store.port` is the port."""
    return TCPStore(address, 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)


def join(address: str, port: int, rank: int, world_size: int, timeout: timedelta) -> ProcessGroupGloo:
    """Joins the group as `rank` over the store at address:port. Blocks till all are there; raises RuntimeError after `timeout`."""
    return group_over(TCPStore(address, port, world_size, is_master=False, timeout=timeout), address, rank, world_size, timeout)


def group_over(store: TCPStore, address: str, rank: int, world_size: int, timeout: timedelta) -> ProcessGroupGloo:
    """The group over an open store. Connections are made on the interface of `address`, so loopback stays loopback."""
    options = ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    return ProcessGroupGloo(PrefixStore("weights", store), rank, world_size, options)
