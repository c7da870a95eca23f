"""Hugging Face checkpoints: which architectures, how their tensors map to Megatron's, how files are read and written."""
