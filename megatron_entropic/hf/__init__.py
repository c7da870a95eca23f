"""Hugging Face checkpoints: which architectures, how their tensors map to Megatron's, how files are read and written."""

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import check_hf_dir
from megatron_entropic.hf.files import HFReader, write_hf
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.mapping import hf_shapes, padded_vocab_size

__all__ = ["Architecture", "CheckpointError", "HFReader", "check_hf_dir", "hf_shapes", "padded_vocab_size", "write_hf"]
