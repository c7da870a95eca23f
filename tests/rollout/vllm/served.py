"""What the servers of a fleet say they hold."""

from megatron_entropic.rollout.vllm.fleet import VLLMFleet


def weight_checksums(fleet: VLLMFleet) -> dict[str, str]:
    """By server name, the checksum of the weights it received last (compare `checksum.weights_checksum`)."""
    assert fleet._sync is not None
    return {name: "+".join(sorted(set(workers))) for name, workers in fleet._sync.checksums().items()}


def served_versions(fleet: VLLMFleet) -> dict[str, int]:
    """By server name, the weight version it says it serves."""
    timeout_s = fleet.cfg.sync_timeout_s
    return {server.name: int(server.call("GET", "/weight_info", timeout_s=timeout_s)["weight_version"]) for server in fleet.servers}
