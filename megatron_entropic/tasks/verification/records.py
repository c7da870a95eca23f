"""Requests and replies of a verifier's process: plain JSON-able records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_entropic.errors import ReportedError


@dataclass(frozen=True)
class VerifierSpec:
    """Recipe of a verifier in a process: `factory` ("package.module:function") is called with (options, seed) and must return
    an object with `score(problem, response)`. `options` must be JSON-able.
    """

    factory: str
    options: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Limits:
    """Bounds of one answer's verification: CPU seconds, wall-clock seconds, and address space (bytes) of the process."""

    cpu_s: float = 3.0
    wall_s: float = 60.0
    memory_bytes: int = 4 * 2**30


@dataclass(frozen=True)
class Verdict:
    """The score of one answer in [0, 1].

    `outcome` is "scored"; "limit" when a limit ended the verification (score 0); "failed" when the verifier raised, died or gave
    no score (score 0). `reason` says which limit or what failure, in one line; empty when scored. `parts` are the scores that the
    verifier put it together from, by name; empty for verifiers that have none, and unless scored.
    """

    score: float
    outcome: Literal["scored", "limit", "failed"] = "scored"
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)


class VerifierError(ReportedError, ValueError):
    """A verifier cannot be made, or failed where the settings say that this ends the run."""
