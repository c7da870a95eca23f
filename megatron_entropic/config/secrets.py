"""Settings that may hold secrets, and how they are shown: in logs, histories, reports and at trackers."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

SECRET = ("alerts.webhook",)
"""Settings whose URL is a secret from its path on."""
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
_WEBHOOK = re.compile(r"((?:^|[\s'\"])alerts\.webhook=)('[^']*'|\"[^\"]*\"|\S*)")


def without_passwords(text: str) -> str:
    """`text` in which URLs have lost what stands before an @."""
    return _PASSWORD.sub("***@", text)


def shown(setting: str, value: Any) -> Any:
    """The value of `setting` as everybody may see it."""
    if isinstance(value, str):
        return _without_path(value) if setting in SECRET and "://" in value else without_passwords(value)
    return [shown(setting, each) for each in value] if isinstance(value, list | tuple) else value


def without_secrets(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nested settings as everybody may see them."""
    return {
        section: {name: shown(f"{section}.{name}", value) for name, value in fields.items()} for section, fields in settings.items()
    }


def argument_shown(word: str) -> str:
    """A word of a command line, or several, as everybody may see it."""
    hidden = _WEBHOOK.sub(lambda found: found[1] + str(shown(SECRET[0], found[2].strip("'\""))), word)
    return without_passwords(hidden)


def _without_path(url: str) -> str:
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}/***"
    except ValueError:
        return "***"
