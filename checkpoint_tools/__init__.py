"""`python -m checkpoint_tools import | export | inspect | verify`. Thin: the work is in megatron_entropic.conversion."""
