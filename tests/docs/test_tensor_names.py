"""Tensor names end in letters of one legend, CONTRIBUTING.md's, or of the module's own docstring."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = re.compile(r"\w*[a-z]\w*_([A-Z0-9]*[A-Z][A-Z0-9]*)")
LEGEND = re.compile(r"\bShapes: (.*?)(?:\n\n|\Z)", re.DOTALL)


def project_letters() -> list[str]:
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Tensor names")[1].split("\n## ")[0]
    return re.findall(r"^\| ([A-Z]) \|", section, re.MULTILINE)


def declared_letters(tree: ast.Module) -> set[str]:
    legend = LEGEND.search(ast.get_docstring(tree) or "")
    return set(re.findall(r"\b[A-Z]\b", legend[1])) if legend else set()


def names(tree: ast.Module) -> set[str]:
    """Every variable, parameter, keyword and attribute."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                found.add(name)
    return found


def letters_of(name: str) -> str:
    """'TV' of logits_TV; '' of a name without a shape, a constant's included."""
    suffix = SUFFIX.fullmatch(name)
    return re.sub("[0-9]", "", suffix[1]) if suffix else ""


def modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(ROOT.joinpath("megatron_entropic").rglob("*.py"))}


def test_what_counts_as_a_tensor_name() -> None:
    examples = {"logits_NV": "NV", "squares_2T": "T", "counts_T256": "T", "_is_token_V": "V"}
    examples |= {"LOG_2": "", "TIME_S": "", "top_k": "", "item_2": "", "T": ""}
    assert {name: letters_of(name) for name in examples} == examples


def test_the_table_names_each_letter_once_in_order() -> None:
    letters = project_letters()
    assert letters == sorted(set(letters))
    assert {"N", "T", "V", "H"} <= set(letters)


def test_every_tensor_name_ends_in_letters_of_the_legend() -> None:
    project = set(project_letters())
    unknown = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in modules().items()
        for name in sorted(names(tree))
        if not set(letters_of(name)) <= project | declared_letters(tree)
    ]
    assert not unknown


def test_a_letter_of_one_module_is_declared_by_no_other() -> None:
    declared: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules().items():
        for letter in declared_letters(tree) - set(project_letters()):
            declared[letter].append(str(path.relative_to(ROOT)))
    assert not {letter: paths for letter, paths in declared.items() if len(paths) > 1}
