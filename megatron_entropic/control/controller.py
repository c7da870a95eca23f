"""The controller protocol, as the trainer calls it."""

from typing import Any, Protocol

from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.measurement import Measurement


class Controller(Protocol):
    """Measure, step, coefficients. Pure: no collectives; the same measurements, the same coefficients on every rank."""

    def coefficients(self) -> Coefficients:
        """Coefficients of the next update."""

    def step(self, measured: Measurement) -> None:
        """Takes the latest global measurement. Raises NonFiniteEntropyError after `control.max_bad_steps` bad ones in a row."""

    def report(self) -> dict[str, float]:
        """Further numbers for metrics.jsonl, shown under control/."""

    def state_dict(self) -> dict[str, Any]:
        """A few plain numbers (JSON)."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state to the last bit."""
