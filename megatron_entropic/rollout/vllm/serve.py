"""`megatron-entropic serve`: starts servers of a run on this machine for a trainer elsewhere, and stays until they are to end."""

import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from megatron_entropic.config import Config
from megatron_entropic.platform import check_gpus_are_seen
from megatron_entropic.rollout.types import RolloutError
from megatron_entropic.rollout.vllm.fleet import VLLMFleet, make_fleet
from megatron_entropic.rollout.vllm.remote_server import (
    FLEET_VARIABLE,
    announce,
    announce_end,
    check_unannounced,
    fleet_folder,
    open_folder,
    still_there,
    withdraw,
)
from megatron_entropic.rollout.vllm.server import VLLMServer
from megatron_entropic.system.devices import ask_for_cpu, without_training_ranks
from megatron_entropic.system.folder_lock import BEAT_S
from megatron_entropic.system.network import address_of, address_toward
from megatron_entropic.system.stop_signal import asking_signals

logger = logging.getLogger(__name__)

WATCH_S = 0.5


def serve(cfg: Config, share: tuple[int, int]) -> None:
    """Runs part k of n of the run's servers, announced in the fleet's folder, until this process is told to end.

    Servers of a part are consecutive; parts differ by at most one. They listen on cfg.rollout.host and on no other address.
    Raises RolloutError naming the server that ended by itself; the others of the part are ended then.
    """
    folder = fleet_folder(cfg.rollout)
    if folder is None:
        raise RolloutError("rollout.fleet_dir is not set: the folder in which the servers are announced to the trainer")
    part, parts = share
    first, last = part * cfg.rollout.servers // parts, (part + 1) * cfg.rollout.servers // parts
    if cfg.rollout.share_gpu:
        raise RolloutError("rollout.share_gpu=true is for servers that the run starts beside its ranks; serve without it")
    if first == last:
        logger.info("nothing to serve: rollout.servers=%d are distributed over %d machines", cfg.rollout.servers, parts)
        return
    os.environ.pop(FLEET_VARIABLE, None)
    without_training_ranks()
    if cfg.parallel.device == "cpu":
        ask_for_cpu()
    check_gpus_are_seen()
    rollout = dataclasses.replace(cfg.rollout, servers=last - first, fleet_dir=None)
    fleet = make_fleet(dataclasses.replace(cfg, rollout=rollout), first_index=first)
    try:
        end_on_signals()
        check_unannounced(open_folder(folder), range(first, last))
        fleet.launch()
        for owned in _owned(fleet):
            announce(folder, owned, owned.pid)
            logger.info("%s; log %s", owned, owned.log_path)
        _watch(folder, fleet)
        dead = [server for server in fleet.servers if server.exit_code() is not None]
        for server in dead:
            announce_end(folder, server, server.exit_code() or 0)
        raise RolloutError("; ".join(f"{server} ended{server.last_words()}" for server in dead))
    finally:
        fleet.close()
        for server in fleet.servers:
            withdraw(folder, server)


def _watch(folder: Path, fleet: VLLMFleet) -> None:
    """Returns once a server has ended; until then says again and again that they are there."""
    beat = time.monotonic()
    while all(server.exit_code() is None for server in fleet.servers):
        time.sleep(WATCH_S)
        if time.monotonic() - beat > BEAT_S:
            beat = time.monotonic()
            for server in fleet.servers:
                still_there(folder, server)


def end_on_signals() -> None:
    """SIGUSR1 ends this process well, and so do SIGHUP (unless under nohup) and SIGTERM, the latter except in a step of a SLURM job.

    There SIGTERM comes to ranks and servers alike before a preemption or at the time limit, and the ranks still need the servers to
    finish what they are saving: the job's launcher then ends this process, or SLURM does, by SIGKILL, a little later.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        sys.exit(0)

    for signum in asking_signals():
        signal.signal(signum, end)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "SLURM_STEP_ID" in os.environ else end)


def serving_address(environ: Mapping[str, str]) -> str:
    """The address to serve on: that of the interface GLOO_SOCKET_IFNAME, else the one on the way to MASTER_ADDR, else loopback."""
    if interface := environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]:
        return address_of(interface)
    return address_toward(environ.get("MASTER_ADDR", "127.0.0.1"))


def _owned(fleet: VLLMFleet) -> list[VLLMServer]:
    return [server for server in fleet.servers if isinstance(server, VLLMServer)]
