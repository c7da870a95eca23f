"""The rollout viewer, `megatron-entropic view RUN`: an index of the recorded rollouts, a local server and its page."""
