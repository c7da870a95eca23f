"""Runs programs that nobody has read: in namespaces of their own, without network, files or time to spare. docs/rewards.md."""

from megatron_entropic.tasks.sandbox.mechanism import best_mechanism, described
from megatron_entropic.tasks.sandbox.records import ALONE, NAMESPACES, CaseResult, Mechanism, SandboxCase, SandboxError, SandboxLimits
from megatron_entropic.tasks.sandbox.sandbox import Sandbox

__all__ = [
    "ALONE",
    "NAMESPACES",
    "CaseResult",
    "Mechanism",
    "Sandbox",
    "SandboxCase",
    "SandboxError",
    "SandboxLimits",
    "best_mechanism",
    "described",
]
