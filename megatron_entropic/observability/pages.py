"""Rendering of the HTML pages: the templates beside this file, and how numbers and times are written in them."""

from pathlib import Path
from typing import Any

import jinja2

from megatron_entropic.observability.report_samples import visible

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # rollout texts, prompts and settings are untrusted
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(template: str, **values: Any) -> str:
    """The page that `template` makes of `values`."""
    return _TEMPLATES.get_template(template).render(number=format_number, visible=visible, **values)


def format_number(value: float | None, spec: str = ".3g") -> str:
    """A number for people: a dash when unknown, a true minus sign."""
    return "–" if value is None else format(value, spec).replace("-", "−")


def format_duration(seconds: float) -> str:
    """A duration for people, in its two largest units: 42 s, 1 min 5 s, 3 h 20 min, 2 d 4 h."""
    seconds = round(seconds)
    for size, unit, rest, rest_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // rest} {rest_unit}"
    return f"{seconds} s"
