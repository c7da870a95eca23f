"""EntroPIC: a PI controller on the entropy error (arXiv 2511.15248)."""

from typing import Any

from megatron_entropic.control.measurement import MeasurementGuard
from megatron_entropic.control.pi import PI


class EntroPIC:
    """Turns the entropy error into alpha, the weight of L_adjust in the policy loss.

        e_k = H_k - H_target        alpha_k = clip(K_p e_k + K_i S_k, -limit, +limit)        S_{k+1} = S_k + e_k

    with S_0 = 0: as in the authors' code an error enters the integral after it was used. `alpha` is what the next update
    applies; it is 0 before the first `step`. Entropy too low makes alpha negative: positives weaker, negatives stronger.

    This is the bare method; steering.py adds schedules, tuned gains and the hand-off around the same PI controller. A pure
    object: no collectives; give every rank the same globally reduced entropy and every rank has the same alpha.

    Args:
        target_entropy: H_target, nats per token at the sampling temperature; any finite number.
        kp, ki: gains, 1/nat and 1/(nat x update).
        alpha_limit: bound of |alpha|.
        high_prob_threshold: tau of the `high_prob` actuator (kept here because it belongs to the method's parameters).
        anti_windup: freeze the integral while alpha is saturated and the error pushes it further out; False is as released.
        max_bad_steps: see MeasurementGuard.
    """

    def __init__(
        self,
        target_entropy: float,
        kp: float = 1.0,
        ki: float = 0.01,
        alpha_limit: float = 1.0,
        high_prob_threshold: float = 0.95,
        anti_windup: bool = True,
        max_bad_steps: int = 5,
    ) -> None:
        self.target_entropy = target_entropy
        self.high_prob_threshold = high_prob_threshold
        self._pi = PI(kp, ki, -alpha_limit, alpha_limit, "conditional" if anti_windup else "off")
        self._guard = MeasurementGuard("EntroPIC", max_bad_steps)

    @property
    def alpha(self) -> float:
        """Alpha of the next update."""
        return self._pi.output

    def step(self, entropy: float) -> None:
        """Takes the measured entropy (nats, token mean over the whole mini-batch) and sets `alpha` for the next update."""
        if self._guard.accepts(entropy):
            self._pi.step(entropy - self.target_entropy)

    def state_dict(self) -> dict[str, Any]:
        return {"pi": self._pi.state_dict(), "bad_steps": self._guard.bad_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pi.load_state_dict(state["pi"])
        self._guard.bad_steps = int(state["bad_steps"])
