"""EntroPIC: a PI controller on the entropy error (arXiv 2511.15248)."""

from typing import Any

from megatron_entropic.control.measurement_guard import MeasurementGuard


class EntroPIC:
    """Turns the entropy error into alpha, the weight of L_adjust in the policy loss.

        e_k = H_k - H_target        alpha_k = clip(K_p e_k + K_i S_k, -limit, +limit)        S_{k+1} = S_k + e_k

    with S_0 = 0: as in the authors' code an error enters the integral after it was used. `alpha` is what the next update
    applies; it is 0 before the first `step`. Entropy too low makes alpha negative: positives weaker, negatives stronger.

    Anti-windup (conditional integration): while alpha is saturated and the error pushes it further out, S is frozen.
    `anti_windup=False` reproduces the released behaviour. A pure object: no collectives; give every rank the same
    globally reduced entropy and every rank has the same alpha.

    Args:
        target_entropy: H_target, nats per token at the sampling temperature; any finite number.
        kp, ki: gains, 1/nat and 1/(nat x update).
        alpha_limit: bound of |alpha|.
        high_prob_threshold: tau of the `high_prob` actuator (kept here because it belongs to the method's parameters).
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
        self.kp = kp
        self.ki = ki
        self.alpha_limit = alpha_limit
        self.high_prob_threshold = high_prob_threshold
        self.anti_windup = anti_windup
        self.alpha = 0.0
        self.integral = 0.0
        self._guard = MeasurementGuard("EntroPIC", max_bad_steps)

    def step(self, entropy: float) -> None:
        """Takes the measured entropy (nats, token mean over the whole mini-batch) and sets `alpha` for the next update."""
        if not self._guard.accepts(entropy):
            return
        error = entropy - self.target_entropy
        wanted = self.kp * error + self.ki * self.integral
        self.alpha = min(max(wanted, -self.alpha_limit), self.alpha_limit)
        saturated_outwards = abs(wanted) > self.alpha_limit and wanted * error > 0
        if not (self.anti_windup and saturated_outwards):
            self.integral += error

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "integral": self.integral, "bad_steps": self._guard.bad_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha = float(state["alpha"])
        self.integral = float(state["integral"])
        self._guard.bad_steps = int(state["bad_steps"])
