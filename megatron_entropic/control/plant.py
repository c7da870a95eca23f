"""How the policy's entropy answers to alpha, estimated while the run goes on.

The plant: near an operating point one optimizer update changes the entropy by a drift (what the policy loss does alone) plus a
gain times alpha, both delayed by the momentum of Adam:

    u_k = u_{k-1} + (1 - beta1) / (1 - beta1^k) (alpha_k - u_{k-1})          Adam's bias-corrected moving average
    H_{k+1} = H_k + s_k (d + g u_k)                      measured: y_k = H_k + noise

s_k is the learning rate relative to its peak. d and g wander slowly. This is linear in the state (H, d, g), so a Kalman filter
is the recursive least-squares estimate of all three from the measurements, and stays unbiased inside the closed loop, where
regressing dH on alpha is not: there alpha answers to the very noise that enters dH.
"""

import math
from dataclasses import dataclass
from typing import Any

Matrix = list[list[float]]

DRIFT_WALK = 0.02
"""Standard deviation by which the drift wanders in one update, in units of the measurement noise."""
GAIN_FORGETTING = 0.02
"""Share by which the gain wanders in one update (standard deviation)."""
LEVEL_WALK = 0.1
"""Changes of the entropy from one update that the model does not explain, in units of the measurement noise."""
PRIOR = 3.0
"""Standard deviation of drift and gain before anything is known, in units of the measurement noise."""
NOISE_MEMORY = 0.97
"""Weight of the past in the estimate of the measurement noise."""


@dataclass(frozen=True)
class PlantEstimate:
    """What is known of the plant: drift and gain in nats per update (per unit of alpha), with standard errors; noise in nats."""

    drift: float
    gain: float
    drift_error: float
    gain_error: float
    noise: float

    @property
    def confidence(self) -> float:
        """The gain in units of its standard error, positive when it has the sign that the actuator should give it."""
        return -self.gain / self.gain_error if self.gain_error > 0 else 0.0


class Plant:
    """The recursive estimate. Pure: same measurements and alphas, same estimate, on every rank.

    Args:
        momentum: Adam's beta1, by which the effect of alpha is delayed.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.level = 0.0
        self.drift = 0.0
        self.gain = 0.0
        self.delayed_alpha = 0.0
        self.updates = 0
        self.observations = 0
        self.noise_variance = 0.0
        self.predicted = 0.0  # the level expected of the latest measurement, and that measurement
        self.measured = 0.0
        self.covariance: Matrix = _diagonal(1.0, PRIOR**2, PRIOR**2)  # of (level, drift, gain), relative to the noise variance

    def advance(self, alpha: float, learning_rate: float = 1.0) -> None:
        """An update was made with this alpha; learning_rate is relative to the peak."""
        self.updates += 1
        correction = (1 - self.momentum) / (1 - self.momentum**self.updates)
        self.delayed_alpha += correction * (alpha - self.delayed_alpha)
        transition = [[1.0, learning_rate, learning_rate * self.delayed_alpha], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        self.level += learning_rate * (self.drift + self.gain * self.delayed_alpha)
        moved = _product(_product(transition, self.covariance), _transposed(transition))
        gain_walk = GAIN_FORGETTING * self.gain / self.noise if self.noise else 0.0
        for index, walk in enumerate((LEVEL_WALK, DRIFT_WALK, gain_walk)):
            moved[index][index] += walk**2
        self.covariance = moved

    def observe(self, entropy: float) -> None:
        """The entropy (nats) was measured after the updates so far."""
        if not self.observations:
            self.level = entropy
        self.predicted, self.measured = self.level, entropy
        surprise = self.measured - self.predicted
        total = self.covariance[0][0] + 1.0
        weights = [row[0] / total for row in self.covariance]
        if self.observations:
            past = NOISE_MEMORY * (1 - NOISE_MEMORY ** (self.observations - 1)) / (1 - NOISE_MEMORY**self.observations)
            self.noise_variance = past * self.noise_variance + (1 - past) * surprise**2 / total
        self.observations += 1
        self.level += weights[0] * surprise
        self.drift += weights[1] * surprise
        self.gain += weights[2] * surprise
        top = self.covariance[0]
        self.covariance = [[self.covariance[i][j] - weights[i] * top[j] for j in range(3)] for i in range(3)]

    @property
    def coasting(self) -> float:
        """By how much the entropy will still move, nats, if alpha now went to where it balances the drift: Adam's momentum."""
        lag = self.momentum / (1 - self.momentum)
        return lag * (self.drift + self.gain * self.delayed_alpha)

    @property
    def noise(self) -> float:
        """Standard deviation of the measurement noise, nats."""
        return math.sqrt(self.noise_variance)

    def estimate(self) -> PlantEstimate:
        """The present estimate."""
        drift_error, gain_error = (self.noise * math.sqrt(max(self.covariance[i][i], 0.0)) for i in (1, 2))
        return PlantEstimate(self.drift, self.gain, drift_error, gain_error, self.noise)

    def state_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "drift": self.drift,
            "gain": self.gain,
            "delayed_alpha": self.delayed_alpha,
            "updates": self.updates,
            "observations": self.observations,
            "noise_variance": self.noise_variance,
            "predicted": self.predicted,
            "measured": self.measured,
            "covariance": self.covariance,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("level", "drift", "gain", "delayed_alpha", "noise_variance", "predicted", "measured"):
            setattr(self, name, float(state[name]))
        self.updates = int(state["updates"])
        self.observations = int(state["observations"])
        self.covariance = [[float(value) for value in row] for row in state["covariance"]]


def _diagonal(*values: float) -> Matrix:
    return [[value if i == j else 0.0 for j in range(len(values))] for i, value in enumerate(values)]


def _product(left: Matrix, right: Matrix) -> Matrix:
    return [[sum(left[i][k] * right[k][j] for k in range(3)) for j in range(3)] for i in range(3)]


def _transposed(matrix: Matrix) -> Matrix:
    return [[matrix[j][i] for j in range(3)] for i in range(3)]
