"""The settings of alerts: what is trouble, after how many steps, and where it is said."""

import os
import re
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from megatron_entropic.config.control import STRICT

_VARIABLE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, config=STRICT)
class AlertsConfig:
    """Alerts: to the log, to trackers, and to a webhook. docs/trackers.md."""

    webhook: str = Field(
        default="",
        description="URL that each alert is posted to as JSON, with a text that Slack shows; env:NAME takes it from that environment "
        "variable, so that config.yaml does not hold it",
    )
    webhook_timeout_s: float = Field(default=10.0, gt=0, description="time limit of one try to post an alert")
    clear_steps: int = Field(default=5, ge=1, description="steps in a row without the trouble after which an alert is over")
    entropy_band: float = Field(
        default=0.25, ge=0, description="alert when the entropy is further from its target than this fraction of it; 0 is off"
    )
    entropy_low: float | None = Field(default=None, ge=0, description="alert when the entropy is below this, nats, whoever steers")
    entropy_high: float | None = Field(default=None, ge=0, description="alert when the entropy is above this, nats, whoever steers")
    entropy_steps: int = Field(default=20, ge=0, description="steps in a row out of these bands before the alert; 0 is off")
    authority_steps: int = Field(
        default=10, ge=0, description="steps in a row in which the controller has nothing left to steer by before the alert; 0 is off"
    )
    logprob_gap_steps: int = Field(
        default=1, ge=0, description="steps in a row with an unusual gap between sampler and trainer before the alert; 0 is off"
    )
    reward_drop: float = Field(
        default=0.5, gt=0, le=1, description="alert when the smoothed reward is this fraction below the best it has been"
    )
    reward_steps: int = Field(default=20, ge=0, description="steps in a row of that before the alert; 0 is off")
    no_signal_steps: int = Field(default=5, ge=0, description="steps in a row without a reward signal before the alert; 0 is off")
    disk_free_gb: float = Field(default=2.0, ge=0, description="alert when the run's disk has fewer GiB free; 0 is off")

    @model_validator(mode="after")
    def _webhook_is_a_url(self) -> "AlertsConfig":
        """Not a validator of the field, whose error would show the value, and with it a secret."""
        if self.webhook and not _VARIABLE.fullmatch(self.webhook) and not is_web_address(self.webhook):
            raise ValueError(
                "alerts.webhook must be a URL (https://... or http://...), or env:NAME of an environment variable that holds one"
            )
        if self.entropy_low is not None and self.entropy_high is not None and self.entropy_low >= self.entropy_high:
            raise ValueError(f"alerts.entropy_low={self.entropy_low:g} must be below alerts.entropy_high={self.entropy_high:g}")
        return self


def is_web_address(url: str) -> bool:
    """Whether `url` is one that JSON can be posted to."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:  # no port or no IPv6 address
        return False


def webhook_address(cfg: AlertsConfig) -> str:
    """The URL; empty when there is none. Raises ValueError naming the variable that does not hold one."""
    if not _VARIABLE.fullmatch(cfg.webhook):
        return cfg.webhook
    name = cfg.webhook.removeprefix("env:")
    if not is_web_address(os.environ.get(name, "")):
        raise ValueError(
            f"alerts.webhook={cfg.webhook}: the environment variable {name} holds no URL that starts with https:// or http://"
        )
    return os.environ[name]
