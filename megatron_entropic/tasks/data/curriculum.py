"""Curriculum by measured pass rate: prompts that were all right or all wrong when they were last asked are passed over more often.

What it decides depends on the run's seed and on rewards alone, so every layout has the same prompts. Rewards of a step count from
the next weights on: with rollout.max_staleness = n the prompts of step k > n are chosen knowing all steps before k.
"""

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from megatron_entropic.config.data import DataConfig
from megatron_entropic.tasks.task import Problem


class Curriculum:
    """Chooses among the draws of a task's stream. State: how many were drawn, and the mean reward of each prompt when last asked."""

    def __init__(self, data: DataConfig, seed: int) -> None:
        self.low, self.high, self.keep = data.curriculum_low, data.curriculum_high, data.curriculum_keep
        self.seed = seed
        self.drawn = 0
        """Draws of the stream that were looked at."""
        self._rates: dict[int, float] = {}
        self._news: dict[int, float] = {}
        self._drawn_before = 0

    def settle(self) -> None:
        """What was measured counts from now on; `state_dict` is that of this moment until the next one."""
        self._rates |= self._news
        self._news = {}
        self._drawn_before = self.drawn

    def next(self, problem_of: Callable[[int], Problem]) -> int:
        """Number of the next draw that is taken."""
        while True:
            number = self.drawn
            self.drawn += 1
            rate = self._rates.get(_key(problem_of(number)))
            if rate is None or self.low < rate < self.high or self._chance(number) < self.keep:
                return number

    def measured(self, problem: Problem, rewards: Sequence[float]) -> None:
        """Takes the rewards of all samples of a prompt."""
        self._news[_key(problem)] = sum(rewards) / len(rewards)

    def state_dict(self) -> dict[str, Any]:
        """JSON; 12 bytes or so for each prompt that was ever asked."""
        keys = sorted(self._rates)
        rates = np.array([self._rates[key] for key in keys], "<f8")
        return {"drawn": self._drawn_before, "keys": _packed(np.array(keys, "<u8")), "rates": _packed(rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state to the last bit."""
        keys, rates = _unpacked(state["keys"], "<u8"), _unpacked(state["rates"], "<f8")
        self.drawn = self._drawn_before = int(state["drawn"])
        self._rates, self._news = dict(zip(keys, rates, strict=True)), {}

    def _chance(self, number: int) -> float:
        """Uniform in [0, 1), by (seed, draw) alone."""
        digest = blake2b(f"curriculum {self.seed} {number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64


def _key(problem: Problem) -> int:
    said = json.dumps([problem.prompt, [dict(message) for message in problem.messages]])
    return int.from_bytes(blake2b(said.encode(), digest_size=8).digest())


def _packed(values: Any) -> str:
    return base64.b64encode(zlib.compress(values.tobytes())).decode()


def _unpacked(text: str, dtype: str) -> list[Any]:
    values: list[Any] = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).tolist()
    return values
