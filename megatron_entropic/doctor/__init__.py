"""What a machine offers a run: `megatron-entropic doctor` prints it, and a cluster job's preflight gathers it on every node."""
