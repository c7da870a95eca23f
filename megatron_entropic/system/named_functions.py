"""Functions and records that a setting names: of a table, of an installed package's entry points, or of the user's own module or file.

Only the standard library, and nothing is imported before it is asked for.
"""

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

FORMS = "package.module:function or file.py:function"
_REFERENCE = re.compile(r"([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*")


def check_name(name: str, known: Mapping[str, str], group: str) -> str:
    """`name` when it is known, an entry point of `group`, or looks like one of FORMS, a file's path made absolute; nothing is imported.

    Raises ValueError with the nearest name.
    """
    if name in known:
        return name
    if _REFERENCE.fullmatch(name):
        location, _, function = name.rpartition(":")
        return f"{Path(location).expanduser().absolute()}:{function}" if location.endswith(".py") else name
    names = [*known, *(point.name for point in metadata.entry_points(group=group))]
    if name in names:
        return name
    raise ValueError(f"is none of {', '.join(names)}, and no {FORMS}{_nearest(name, names)}")


def named_function(setting: str, name: str, table: Mapping[str, str], group: str) -> Callable[..., Any]:
    """The function behind `name`. Raises as `named_object`, and ValueError for what cannot be called."""
    found: Callable[..., Any] = named_object(setting, name, table, group)
    if not callable(found):
        raise ValueError(f"{setting}={name}: {name.rpartition(':')[2]} is no function but {type(found).__name__}")
    return found


def named_object(setting: str, name: str, table: Mapping[str, str], group: str) -> Any:
    """The function that `name` stands for; the table's wins over an entry point of `group`.

    A user's module may lie in the working directory, as for the ranks (`python -m`); a file's neighbours can be imported by it.

    Raises ValueError naming `setting`, and the module, file, function or package that is missing, or the line that raised.
    """
    location, _, function = reference_of(name, table, group).rpartition(":")
    folder = str(Path(location).expanduser().absolute().parent if location.endswith(".py") else Path.cwd())
    if name not in table and folder not in sys.path:
        sys.path.append(folder)
    if location.endswith(".py") and not Path(location).expanduser().is_file():
        raise ValueError(f"{setting}={name}: no file {Path(location).expanduser().absolute()}")
    try:
        module = load_module(location)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{location}.".startswith(f"{error.name}."):  # the module is there, but not what it needs
            raise ValueError(f"{setting}={name}: {location} needs the package {error.name}, which is not installed") from error
        raise ValueError(f"{setting}={name}: no module {location} in {folder} or on PYTHONPATH") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{setting}={name}: {raised(error)}") from error
    found = getattr(module, function, None)
    if found is None:
        file = "" if location.endswith(".py") else f" ({getattr(module, '__file__', None) or 'built in'})"
        raise ValueError(f"{setting}={name}: {location} has no function {function}{file}{_nearest(function, dir(module))}")
    return found


def raised(error: BaseException) -> str:
    """An exception of somebody else's code in one line, with that code's last file and line."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f", {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


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
