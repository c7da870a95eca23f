"""Training checkpoints: what is saved of a policy and its controller, when, and how it is found again."""
