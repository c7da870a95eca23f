"""The Megatron-Core policy: parallel groups, model, batching, engine, weights."""

from megatron_entropic import platform as platform  # quiets Megatron-Core's import warnings before its first import
