"""Measurement noise of a Kalman filter, estimated from its own innovations."""

import math
from dataclasses import dataclass

OUTLIER = 3.0
"""Innovations count as at most this many standard deviations."""
MEMORY = 0.97
"""Weight of the past in the variance."""
PRIOR_COUNT = 1
"""Measurements that the prior variance is worth."""
WALK_RATE, SMALLEST_WALK, LARGEST_WALK = 0.08, 0.01, 1.0
SURPRISE, SURPRISE_MEMORY = 1.5, 0.7
"""A moving average of normalised innovations beyond this (3.6 of its standard deviations) is a plant that has changed."""


@dataclass
class Noise:
    """Of one kind of measurement.

    variance: of a measurement, nats^2.
    walk: standard deviation by which what is measured wanders unexplained in one update, in units of the measurement's. It grows
        while neighbouring innovations have the same sign and shrinks while they alternate: those of a right filter are white.
    last, surprise: the latest normalised innovation, and a moving average of them.
    """

    variance: float = 0.0
    walk: float = 0.1
    count: int = 0
    last: float = 0.0
    surprise: float = 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation, nats."""
        return math.sqrt(self.variance)

    def learn(self, normalised: float) -> bool:
        """Takes an innovation over its standard deviation; True when there is more in the latest ones than noise.

        Their squares are 1 on average when the variance is right; otherwise it follows them.
        """
        z = max(-OUTLIER, min(OUTLIER, normalised))
        self.count += 1
        weight = max(1 - MEMORY, 1 / (self.count + PRIOR_COUNT))
        self.variance *= 1 + weight * (z**2 - 1)
        self.walk *= math.exp(WALK_RATE * max(-1.0, min(1.0, z * self.last)))
        self.walk = min(LARGEST_WALK, max(SMALLEST_WALK, self.walk))
        self.last = z
        self.surprise = SURPRISE_MEMORY * self.surprise + (1 - SURPRISE_MEMORY) * z
        if abs(self.surprise) <= SURPRISE:
            return False
        self.surprise = 0.0
        return True
