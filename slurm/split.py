"""Split of the nodes into training and rollout serving."""

from __future__ import annotations

import json
from dataclasses import dataclass

from slurm.allocation import Allocation, ClusterError, Group

DESCRIPTION = "DESCRIPTION "
"""Begins the line that `slurm.describe` prints."""


@dataclass(frozen=True)
class Description:
    """Description of a run for the launcher. `slurm.describe` prints it from the run's own environment."""

    run_dir: str
    has_run: bool
    """Whether the folder holds a run already, which is then resumed."""
    overrides: list[str]
    world_size: int
    uses_servers: bool
    servers: int
    server_gpus: int
    """GPUs of one server."""
    model: str
    run_dir_bytes: int
    """Upper bound of the size of checkpoints and exported model, roughly."""
    shares_gpus: bool = False
    """Whether servers run on the training ranks' GPUs."""
    device: str = "auto"
    """The run's parallel.device."""

    @classmethod
    def parse(cls, text: str) -> Description:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class NodeSplit:
    """The trainer's nodes with its ranks on each, and the fleet's nodes (none: servers run beside rank 0, started by it)."""

    trainer: Group
    ranks_per_node: int
    fleet: Group | None

    @property
    def ranks(self) -> int:
        return len(self.trainer.nodes) * self.ranks_per_node

    def node_of_rank(self, rank: int) -> str:
        return self.trainer.nodes[rank // self.ranks_per_node]


def split_nodes(allocation: Allocation, run: Description, ranks_per_node: int | None) -> NodeSplit:
    """The first nodes train, as many as the layout's ranks fill; the others, or a het job's second component, serve.

    `ranks_per_node` is by default the GPUs of a node. Raises ClusterError naming what to ask SLURM for instead.
    """
    first = allocation.groups[0]
    per_node = _ranks_per_node(allocation, run, ranks_per_node)
    if run.world_size % per_node:
        raise ClusterError(
            f"parallel.* makes {run.world_size} ranks, which do not fill nodes of {per_node}: choose a layout of a multiple of "
            f"{per_node} ranks, or --ranks-per-node"
        )
    wanted = run.world_size // per_node
    if len(allocation.groups) > 2:
        raise ClusterError(f"a heterogeneous job of {len(allocation.groups)} components: two are needed, trainer and fleet")
    if len(allocation.groups) == 2:
        if len(first.nodes) != wanted:
            raise ClusterError(
                f"the trainer's component has {len(first.nodes)} nodes; {run.world_size} ranks of {per_node} a node need {wanted}"
            )
        trainer, fleet = first, allocation.groups[1]
    else:
        trainer = Group(first.nodes[:wanted], first.cpus_per_node, first.gpus_per_node)
        fleet = Group(first.nodes[wanted:], first.cpus_per_node, first.gpus_per_node)
    if len(trainer.nodes) < wanted:
        raise ClusterError(
            f"{run.world_size} ranks of {per_node} a node need {wanted} nodes; the job has {len(trainer.nodes)}: sbatch --nodes"
        )
    return NodeSplit(trainer, per_node, _checked_fleet(run, fleet))


def _ranks_per_node(allocation: Allocation, run: Description, asked: int | None) -> int:
    group = allocation.groups[0]
    if asked:
        return asked
    if group.gpus_per_node:
        return min(group.gpus_per_node, run.world_size)
    if len(allocation.groups) == 1 and run.uses_servers and len(group.nodes) > 1:
        raise ClusterError("these nodes have no GPUs, so how many ranks each runs must be said: --ranks-per-node")
    return max(1, run.world_size // len(group.nodes))


def _checked_fleet(run: Description, fleet: Group) -> Group | None:
    if not fleet.nodes:
        return None
    if not run.uses_servers:
        raise ClusterError(
            f"the run uses no vLLM servers, so {len(fleet.nodes)} nodes would idle: {', '.join(fleet.nodes)}; ask for fewer"
        )
    if run.shares_gpus:
        raise ClusterError(
            f"rollout.share_gpu=true has the servers on the ranks' GPUs, so {len(fleet.nodes)} nodes would idle: "
            f"{', '.join(fleet.nodes)}; ask for fewer, or leave the setting away"
        )
    if run.servers < len(fleet.nodes):
        raise ClusterError(
            f"rollout.servers={run.servers} on {len(fleet.nodes)} nodes of the fleet: ask for fewer nodes, or raise rollout.servers"
        )
    on_fullest = -(-run.servers // len(fleet.nodes)) * run.server_gpus
    if fleet.gpus_per_node and on_fullest > fleet.gpus_per_node:
        raise ClusterError(
            f"rollout.servers={run.servers} of {run.server_gpus} GPUs need {on_fullest} GPUs a node on {len(fleet.nodes)} nodes of the "
            f"fleet, which have {fleet.gpus_per_node}: ask for more nodes, or lower rollout.servers"
        )
    return fleet
