"""The house rules that imports only go down (.importlinter) and that a name is one thing's hold."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

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
