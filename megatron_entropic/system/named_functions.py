"""Functions that a setting names: of a table, of an installed package's entry points, or of the user's own module or file.

Only the standard library, and nothing is imported before it is asked for.
"""

import difflib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

FORMS = "package.module:function or file.py:function"
_REFERENCE = re.compile(r"([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*")


def check_name(name: str, known: Mapping[str, str], group: str) -> str:
    """`name` when it is known, an entry point of `group`, or looks like one of FORMS; nothing is imported.

    Raises ValueError with the nearest name.
    """
    if name in known or _REFERENCE.fullmatch(name):
        return name
    names = [*known, *(point.name for point in metadata.entry_points(group=group))]
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"is none of {', '.join(names)}, and no {FORMS}{hint}")


def named_function(setting: str, name: str, table: Mapping[str, str], group: str) -> Callable[..., Any]:
    """The function behind `name`; that of the table wins over an entry point of `group`.

    A user's module may lie in the working directory, as for the ranks (`python -m`); a file is found from there.

    Raises ValueError naming `setting`, and the module, file, function or package that is missing.
    """
    reference = reference_of(name, table, group)
    location, _, function = reference.rpartition(":")
    here = str(Path.cwd())
    if name not in table and here not in sys.path:
        sys.path.append(here)
    if location.endswith(".py") and not Path(location).expanduser().is_file():
        raise ValueError(f"{setting}={name}: no file {Path(location).expanduser().absolute()}")
    try:
        module = load_module(location)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{location}.".startswith(f"{error.name}."):  # the module is there, but not what it needs
            raise ValueError(f"{setting}={name}: {location} needs the package {error.name}, which is not installed") from error
        raise ValueError(f"{setting}={name}: no module {location} in {here} or on PYTHONPATH") from None
    found: Callable[..., Any] | None = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{setting}={name}: {location} has no function {function}")
    return found


def load_module(location: str) -> ModuleType:
    """The module of that name, or of that file (its path ends in `.py`), which is run once in a process.

    Raises ModuleNotFoundError, and whatever running it raises.
    """
    if not location.endswith(".py"):
        return import_module(location)
    return sys.modules.get(_name_of(Path(location))) or run_file(Path(location))


def run_file(path: Path) -> ModuleType:
    """The module that running the file makes, each time anew. Raises whatever running it raises."""
    name = _name_of(path)
    spec = importlib.util.spec_from_file_location(name, path.expanduser())
    assert spec is not None, "a path ends in .py"
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # before it runs: dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _name_of(path: Path) -> str:
    """Of the file's module: none that an import statement could mean."""
    return f"file:{path.expanduser().resolve()}"


def reference_of(name: str, table: Mapping[str, str], group: str) -> str:
    """`module:function` or `file.py:function` of a name; one that is known nowhere is one itself.

    Raises ValueError when two installed packages claim the name.
    """
    if name in table or ":" in name:
        return table.get(name, name)
    points = {point.value for point in metadata.entry_points(group=group, name=name)}
    if len(points) > 1:
        raise ValueError(f"{name}: several installed packages have an entry point {group} of this name: {', '.join(sorted(points))}")
    return points.pop() if points else name
