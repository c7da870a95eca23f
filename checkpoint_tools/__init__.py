"""`python -m checkpoint_tools inspect PATH | verify A B`: looks into checkpoints. Thin: the work is in megatron_entropic.hf."""
