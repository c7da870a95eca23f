"""The house rules that imports only go down (.importlinter) and that a name is one thing's hold."""

import ast
import graphlib
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from megatron_entropic.config.control import ACTUATORS, KINDS
from megatron_entropic.config.rollout import ENGINES
from megatron_entropic.config.schema import ADVANTAGES, POLICY_LOSSES, TASKS, TRACKERS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("megatron_entropic", "recipes", "slurm", "checkpoint_tools")


def test_imports_only_go_down() -> None:
    # A process of its own: import-linter switches off the loggers of the process it runs in.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", ".importlinter", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_two_classes_share_a_name() -> None:
    """Nor a class and a type with a name of its own (Bucket = list[...]); an underscore in front makes no other name."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(path for package in PACKAGES for path in ROOT.joinpath(package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        named = [name for name in assigned(tree) if is_type_name(name)]
        for name in named + [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]:
            places[name.lstrip("_")].append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def assigned(module: ast.Module) -> list[str]:
    targets = [target for node in module.body if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def is_type_name(name: str) -> bool:
    return name.lstrip("_")[:1].isupper() and name != name.upper()


def test_nothing_asks_for_a_kind_of_control_by_its_name() -> None:
    """A kind is one file in control/ and one line in config/control.py: everything else asks its record."""
    kinds, rooms = set(KINDS) - {"none"}, {"config", "control"}
    for path in sorted((ROOT / "megatron_entropic").rglob("*.py")):
        if path.relative_to(ROOT / "megatron_entropic").parts[0] in rooms:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                named = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}
                assert not named & kinds, f"{path}:{node.lineno}"


def test_the_trainer_and_the_policy_ask_tables() -> None:
    """No name of theirs is compared with: kinds, actuators, advantages, losses, engines, trackers, tasks."""
    names = {name for table in (KINDS, ACTUATORS, ADVANTAGES, POLICY_LOSSES, ENGINES, TRACKERS, TASKS) for name in table} - {"none"}
    package = ROOT / "megatron_entropic"
    for path in (package / "trainer.py", *sorted((package / "policy").glob("*.py")), package / "rollout" / "source.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                named = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}
                assert not named & names, f"{path}:{node.lineno}"


def test_files_and_functions_are_of_a_size_to_read() -> None:
    """Half of the files within 130 lines and none above 400; nine functions in ten within 25 and none above 100 but Triton's."""
    files = {path: path.read_text(encoding="utf-8") for package in PACKAGES for path in ROOT.joinpath(package).rglob("*.py")}
    lengths = {path: len(text.splitlines()) for path, text in files.items()}
    assert statistics.median(lengths.values()) <= 130
    assert not {path: length for path, length in lengths.items() if length > 400}
    functions = {
        (path, node.name): (node.end_lineno or 0) - node.lineno + 1
        for path, text in files.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert statistics.quantiles(functions.values(), n=10)[-1] <= 25
    assert not {name: length for name, length in functions.items() if length > 100 and name[0].parent.name != "triton"}


def test_no_circle_of_files() -> None:
    """Imports within functions count too."""
    files = {module_name(path): path for package in PACKAGES for path in ROOT.joinpath(package).rglob("*.py")}
    imports = {name: imported(path, set(files)) - {name} for name, path in files.items()}
    order = list(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError naming the files
    assert set(order) == set(files)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, files: set[str]) -> set[str]:
    """The modules of ours that a file imports: `from a import b` is the module a.b where there is one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= parts & files or {node.module}
    return found & files
