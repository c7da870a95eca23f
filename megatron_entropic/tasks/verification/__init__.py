"""Verifiers in processes of their own: bounded in time and memory, several beside one another, replaced when an answer ends one."""

from megatron_entropic.tasks.verification.judging import judge
from megatron_entropic.tasks.verification.pool import VerifierPool
from megatron_entropic.tasks.verification.records import Limits, Verdict, VerifierError, VerifierSpec
from megatron_entropic.tasks.verification.waiting import WaitingPool
from megatron_entropic.tasks.verification.worker import VerifierWorker

__all__ = ["Limits", "Verdict", "VerifierError", "VerifierPool", "VerifierSpec", "VerifierWorker", "WaitingPool", "judge"]
