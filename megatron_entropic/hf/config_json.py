"""The fields of a config.json, of which every error names the file and the field."""

import json
from pathlib import Path
from typing import Any

from megatron_entropic.hf.directory import download_hint


class ConfigFields:
    """The object that a config.json holds. Raises ValueError when there is no such file, or it holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path}: no such file; a Hugging Face model directory has a config.json{download_hint(path.parent)}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as problem:
            raise ValueError(f"{path}: not valid JSON: {problem}") from problem
        if not isinstance(values, dict):
            raise ValueError(f"{path}: holds a {type(values).__name__}, not an object")
        self.values: dict[str, Any] = values

    def error(self, field: str, problem: str) -> ValueError:
        return ValueError(f"{self.path}: field {field} {problem}")

    def get(self, field: str) -> Any:
        """The field's value; None where it is null or missing."""
        return self.values.get(field)

    def positive_int(self, field: str, default: int | None = None) -> int:
        """`default`: of a missing field, where there is one."""
        value = self.values.get(field, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(field, self._not(value, "a positive integer"))
        return value

    def one_of(self, names: tuple[str, ...]) -> int:
        """The positive integer that has one of these names; where several are there, they must agree."""
        present = [name for name in names if self.get(name) is not None] or [names[0]]
        values = [self.positive_int(name) for name in present]
        if len(set(values)) > 1:
            raise self.error(present[1], f"= {values[1]} contradicts {present[0]} = {values[0]}")
        return values[0]

    def boolean(self, field: str, default: bool) -> bool:
        value = self.values.get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, self._not(value, "true or false"))
        return value

    def positive_float(self, field: str, value: Any) -> float:
        """`value` as a float; `field` is its name in errors."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(field, self._not(value, "a positive number"))
        return float(value)

    def require_fixed(self, field: str, supported: Any, *, null_is_supported: bool = False) -> None:
        value = self.values.get(field, supported)
        if value != supported and not (value is None and null_is_supported):
            raise self.error(field, f"= {value!r} is not supported; it must be {supported!r}")

    def require_agreement(self, field: str, older: str) -> None:
        """Refuses two values for one thing: readers differ in which of the two names they prefer."""
        new, old = self.get(field), self.get(older)
        if new is not None and old is not None and new != old:
            raise self.error(field, f"= {new!r} contradicts {older} = {old!r}; keep one of them")

    @staticmethod
    def _not(value: Any, wanted: str) -> str:
        return f"is missing; it must be {wanted}" if value is None else f"= {value!r} is not {wanted}"
