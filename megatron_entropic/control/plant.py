"""Model of the policy's entropy response to alpha, estimated during the run.

The plant: near an operating point one optimizer update changes the entropy by a drift (what the policy loss does alone) plus a
gain times alpha, both delayed by the momentum of Adam:

    u_k     = u_{k-1} + (1 - beta1) / (1 - beta1^k) (alpha_k - u_{k-1})      Adam's bias-corrected moving average
    r_k     = s_k (d + g u_k) + noise                    the response: same tokens before and after the update (`Measurement.response`)
    H_{k+1} = H_k + kappa r_k + b                        measured on fresh samples: y_k = H_k + noise

s_k is the learning rate relative to its peak. The response is precise, because the samples cancel; but it is about fixed
contexts, and the policy also moves to others. kappa and b say what that makes of it for fresh samples: they are estimated, not
assumed. Where no response is measured, r_k is the model's own prediction, kappa is 1 and b is 0.

All of (H, kappa, b, d, g) is one Kalman filter: linear in what is unknown, and unbiased inside the closed loop, where regressing
dH on alpha is not, because there alpha answers to the very noise that enters dH. What the filter must know of the noise it learns
from its own innovations: their size, and whether each resembles the one before (then the states move more than it thinks).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from megatron_entropic.control.noise import OUTLIER, Noise

MatrixRow = tuple[float, float, float, float, float]
Matrix = list[list[float]]

LEVEL, SCALE, BIAS, DRIFT, GAIN = range(5)
STATES = 5

GAIN_FORGETTING, BLIND_GAIN_FORGETTING = 0.08, 0.01
"""Relative random walk of the gain in one update (standard deviation) where responses are measured, and where none is and so wide a
freedom would be filled with noise. It does wander: alpha loses its hold as more samples of a prompt agree."""
SCALE_FORGETTING = 0.02
"""The same for kappa."""
PRIOR_NOISE, PRIOR_DRIFT, PRIOR_GAIN = 0.03, 0.03, 0.05
"""Standard deviations before anything is known, relative to the first entropy; of drift and gain per update."""
PRIOR_SCALE = (1.75, 0.6)
"""Mean and standard deviation of kappa once responses are measured."""
PRIOR_BIAS = 0.005
"""Standard deviation of b, relative to the first entropy."""
BIAS_WALK = 0.005
"""Standard deviation by which b wanders in one update, in units of the measurement's noise."""
SCALE_BOUNDS = (0.3, 6.0)
PRIOR_RESPONSE_NOISE = 0.001
"""Standard deviation of a response's noise before anything is known, relative to the first entropy."""
DRIFT_WALK = 0.02
"""Without responses: standard deviation by which the drift wanders in one update, in units of the measurement's noise."""


@dataclass(frozen=True)
class PlantEstimate:
    """Estimate of the plant: drift and gain in nats per update (per unit of alpha), with standard errors; noise in nats."""

    drift: float
    gain: float
    drift_error: float
    gain_error: float
    noise: float

    @property
    def confidence(self) -> float:
        """The gain in units of its standard error, positive when it has the sign that the actuator should give it."""
        return -self.gain / self.gain_error if self.gain_error > 0 else 0.0

    @property
    def balance(self) -> float:
        """Alpha at which gain and drift cancel: -drift gain / (gain^2 + gain_error^2), less than -drift / gain where that is unsure."""
        certain = self.gain**2 + self.gain_error**2
        return -self.drift * min(self.gain, 0.0) / certain if certain > 0 else 0.0


class Plant:
    """The recursive estimate. Pure: same measurements and alphas, same estimate, on every rank.

    Args:
        momentum: Adam's beta1, by which the effect of alpha is delayed.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.mean = [0.0, 1.0, 0.0, 0.0, 0.0]
        self.covariance: Matrix = [[0.0] * STATES for _ in range(STATES)]
        self.delayed_alpha = 0.0
        self.updates = 0
        self.observations = 0
        self.responses = 0
        self.predicted = 0.0  # the level expected of the latest measurement, and that measurement
        self.measured = 0.0
        self.level_noise = Noise()
        self.response_noise = Noise()

    @property
    def level(self) -> float:
        """The entropy after the updates so far, nats: an average over what was measured, moved along by the responses."""
        return self.mean[LEVEL]

    def advance(self, alpha: float, learning_rate: float = 1.0, response: float = math.nan) -> None:
        """An update was made with this alpha; learning_rate is relative to the peak; response in nats, NaN when not measured."""
        self.updates += 1
        correction = (1 - self.momentum) / (1 - self.momentum**self.updates)
        self.delayed_alpha += correction * (alpha - self.delayed_alpha)
        if not self.observations:
            return
        if math.isfinite(response):
            self._learn_from(response, learning_rate)
            moved, sensitivity = response, (1.0, response, learning_rate, 0.0, 0.0)
        else:
            _, scale, _, drift, gain = self.mean
            moved = learning_rate * (drift + gain * self.delayed_alpha)
            sensitivity = (1.0, moved, learning_rate, scale * learning_rate, scale * learning_rate * self.delayed_alpha)
        self.mean[LEVEL] += self.mean[SCALE] * moved + self.mean[BIAS] * learning_rate
        self._propagate(sensitivity)
        self._wander()

    def observe(self, entropy: float) -> None:
        """The entropy (nats) was measured on fresh samples of the policy after the updates so far."""
        if not self.observations:
            self._begin(entropy)
        self.predicted, self.measured = self.level, entropy
        innovation = entropy - self.level
        self.observations += 1
        if self.observations > 1:
            changed = self._update((1.0, 0.0, 0.0, 0.0, 0.0), innovation, self.level_noise)
            if changed:
                self.covariance[LEVEL][LEVEL] += innovation**2
        low, high = SCALE_BOUNDS
        self.mean[SCALE] = min(high, max(low, self.mean[SCALE]))

    @property
    def coasting(self) -> float:
        """By how much the entropy will still move, nats, if alpha now went to where it balances the drift: Adam's momentum."""
        estimate = self.estimate()
        return self._lag * (estimate.drift + estimate.gain * self.delayed_alpha)

    @property
    def error_noise(self) -> float:
        """Standard error of level + coasting, nats: of what a controller acts on."""
        _, scale, _, drift, gain = self.mean
        u, lag = self.delayed_alpha, self._lag
        return math.sqrt(self._variance((1.0, lag * (drift + gain * u), lag, lag * scale, lag * scale * u)))

    @property
    def noise(self) -> float:
        """Standard deviation of the noise of a measured entropy, nats."""
        return math.sqrt(self.level_noise.variance)

    def estimate(self) -> PlantEstimate:
        """The present estimate, of the entropy of fresh samples."""
        _, scale, bias, drift, gain = self.mean
        drift_error = math.sqrt(self._variance((0.0, drift, 1.0, scale, 0.0)))
        gain_error = math.sqrt(self._variance((0.0, gain, 0.0, 0.0, scale)))
        return PlantEstimate(scale * drift + bias, scale * gain, drift_error, gain_error, self.noise)

    def state_dict(self) -> dict[str, Any]:
        return {
            "mean": list(self.mean),
            "covariance": [self.covariance[i][j] for i in range(STATES) for j in range(i + 1)],
            "level_noise": asdict(self.level_noise),
            "response_noise": asdict(self.response_noise),
        } | {name: getattr(self, name) for name in _NUMBERS + _COUNTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "mean" not in state:
            state = _of_three_states(state)
        self.mean = [float(value) for value in state["mean"]]
        triangle = iter(state["covariance"])
        for i in range(STATES):
            for j in range(i + 1):
                self.covariance[i][j] = self.covariance[j][i] = float(next(triangle))
        self.level_noise = Noise(**state["level_noise"])
        self.response_noise = Noise(**state["response_noise"])
        for name in _NUMBERS:
            setattr(self, name, float(state[name]))
        for name in _COUNTS:
            setattr(self, name, int(state[name]))

    @property
    def _lag(self) -> float:
        """Sum of the weights that u_k still has in all later u: beta1 / (1 - beta1), less while Adam's bias correction forgets faster.

        u_{k+n} weighs u_k with beta1^n (1 - beta1^k) / (1 - beta1^{k+n}).
        """
        beta, fraction = self.momentum, 1 - self.momentum**self.updates
        if fraction > 1 - 1e-9:
            return beta / (1 - beta)
        total, power = 0.0, beta
        while power > 1e-9:
            total += power * fraction / (1 - power * (1 - fraction))
            power *= beta
        return total

    def _begin(self, entropy: float) -> None:
        """The first measurement sets the units of what is not known yet."""
        unit = max(abs(entropy), 1e-6)
        self.level_noise.variance = (PRIOR_NOISE * unit) ** 2
        self.response_noise.variance = (PRIOR_RESPONSE_NOISE * unit) ** 2
        self.mean[LEVEL] = entropy
        for state, error in ((LEVEL, PRIOR_NOISE), (DRIFT, PRIOR_DRIFT), (GAIN, PRIOR_GAIN)):
            self.covariance[state][state] = (error * unit) ** 2

    def _learn_from(self, response: float, learning_rate: float) -> None:
        """Drift and gain from a response; with the first one kappa and b become unknowns."""
        if not self.responses:
            self.mean[SCALE], error = PRIOR_SCALE
            self.covariance[SCALE][SCALE] = error**2
            self.covariance[BIAS][BIAS] = (PRIOR_BIAS * max(abs(self.level), 1e-6)) ** 2
        self.responses += 1
        row = (0.0, 0.0, 0.0, learning_rate, learning_rate * self.delayed_alpha)
        innovation = response - sum(a * b for a, b in zip(row, self.mean, strict=True))
        if self._update(row, innovation, self.response_noise):
            self.covariance[DRIFT][DRIFT] += innovation**2
            self.covariance[GAIN][GAIN] += innovation**2

    def _update(self, row: MatrixRow, innovation: float, noise: Noise) -> bool:
        """A Kalman update by one measurement; True when its innovations say that the plant has changed."""
        column = [sum(a * b for a, b in zip(line, row, strict=True)) for line in self.covariance]
        prior = sum(a * b for a, b in zip(column, row, strict=True))
        total = prior + noise.variance
        if total <= 0:
            return False
        bounded = max(-OUTLIER, min(OUTLIER, innovation / math.sqrt(total))) * math.sqrt(total)
        for i in range(STATES):
            self.mean[i] += column[i] / total * bounded
        self.covariance = [[self.covariance[i][j] - column[i] * column[j] / total for j in range(STATES)] for i in range(STATES)]
        return noise.learn(innovation / math.sqrt(total))

    def _propagate(self, sensitivity: MatrixRow) -> None:
        """The covariance after an update that changed the level by `sensitivity` per unit of each state."""
        top = [sum(sensitivity[k] * self.covariance[k][j] for k in range(STATES)) for j in range(STATES)]
        top[LEVEL] = sum(top[j] * sensitivity[j] for j in range(STATES))
        for j in range(STATES):
            self.covariance[LEVEL][j] = self.covariance[j][LEVEL] = top[j]

    def _wander(self) -> None:
        """Process noise of one update."""
        measured = self.responses > 0
        drift_walk = self.response_noise.deviation * self.response_noise.walk if measured else DRIFT_WALK * self.noise
        for state, walk in (
            (LEVEL, self.level_noise.walk * self.noise),
            (DRIFT, drift_walk),
            (GAIN, (GAIN_FORGETTING if measured else BLIND_GAIN_FORGETTING) * abs(self.mean[GAIN])),
            (BIAS, BIAS_WALK * self.noise if measured else 0.0),
            (SCALE, SCALE_FORGETTING * self.mean[SCALE] if measured else 0.0),
        ):
            self.covariance[state][state] += walk**2

    def _variance(self, row: MatrixRow) -> float:
        """Of a linear combination of the states."""
        return max(0.0, sum(row[i] * self.covariance[i][j] * row[j] for i in range(STATES) for j in range(STATES)))


def _of_three_states(state: dict[str, Any]) -> dict[str, Any]:
    """The state as earlier checkpoints have it: level, drift and gain, with their covariance in units of the noise."""
    indices = {LEVEL: 0, DRIFT: 1, GAIN: 2}
    variance = float(state["noise_variance"])
    covariance = [
        variance * float(state["covariance"][indices[i]][indices[j]]) if i in indices and j in indices else 0.0
        for i in range(STATES)
        for j in range(i + 1)
    ]
    noise = Noise(variance=variance, count=int(state["observations"]))
    return {
        "mean": [state["level"], 1.0, 0.0, state["drift"], state["gain"]],
        "covariance": covariance,
        "level_noise": asdict(noise),
        "response_noise": asdict(Noise(variance=(PRIOR_RESPONSE_NOISE * float(state["level"])) ** 2)),
        "responses": 0,
    } | {name: state[name] for name in (*_NUMBERS, "updates", "observations")}


_NUMBERS = ("delayed_alpha", "predicted", "measured")
_COUNTS = ("updates", "observations", "responses")
