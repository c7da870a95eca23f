"""Objects that the user's code makes: what they lack, and what goes wrong in them, names the setting that brought them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megatron_entropic.errors import ReportedError
from megatron_entropic.system.named_functions import raised

MISTAKES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, TypeError, ValueError)
"""What a mistake in Python code raises. Others pass: a RuntimeError may be a collective's, which says more."""


class Outsider:
    """Stands for an object of the user's: a mistake in one of its methods is a ValueError with the setting, and the line of it."""

    def __init__(self, place: str, found: Any) -> None:
        self._place, self._found = place, found

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._found, attribute)
        if not callable(found):
            return found

        def method(*arguments: Any, **named: Any) -> Any:
            with _named(self._place, MISTAKES):
                return found(*arguments, **named)

        return method


def made_outside(place: str, make: Callable[..., Any], *arguments: Any, needs: Sequence[str]) -> Any:
    """What `make(*arguments)` returns, as an Outsider; `place` is `setting=name`.

    Raises ValueError naming it for whatever goes wrong in `make` (but OSError), and for attributes that are needed and not there.
    """
    with _named(place, (Exception, SystemExit)):
        made = make(*arguments)
    if lacking := [name for name in needs if not hasattr(made, name)]:
        raise ValueError(f"{place}: what it makes, {type(made).__name__}, has no {', no '.join(lacking)}")
    return Outsider(place, made)


@contextmanager
def _named(place: str, kinds: tuple[type[BaseException], ...]) -> Iterator[None]:
    try:
        yield
    except (ReportedError, OSError):
        raise
    except kinds as error:
        raise ValueError(f"{place}: {raised(error)}") from error
