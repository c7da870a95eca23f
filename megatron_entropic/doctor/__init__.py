"""Checks of a machine before a run: `megatron-entropic doctor` prints it, and a cluster job's preflight gathers it on every node."""
