"""Trouble that lasts: an alert begins after enough steps in a row with it, and is over after enough steps in a row without.

A pure function of the steps seen: a resumed run shows it the steps before its checkpoint and is where it was.
"""

from typing import Literal


class Episode:
    """The steps of one kind of trouble. It begins after `patience` steps in a row, and is over after `clear` without."""

    def __init__(self, patience: int, clear: int) -> None:
        self._patience, self._clear = patience, clear
        self._without = 0
        self.begun = False
        self.steps = 0
        """Steps with the trouble since it was first seen, in a row until it has begun."""
        self.lasted = 0
        """The same, of the episode that was over last."""

    def step(self, trouble: bool) -> Literal["begins", "over"] | None:
        """Takes a step; says whether an alert begins or is over with it."""
        if trouble:
            self.steps, self._without = self.steps + 1, 0
            if not self.begun and self.steps >= self._patience:
                self.begun = True
                return "begins"
            return None
        if not self.begun:
            self.steps = 0
            return None
        self._without += 1
        if self._without < self._clear:
            return None
        self.begun, self.lasted, self.steps = False, self.steps, 0
        return "over"
