"""Every command that README or docs/ show can be typed: it is parsed by its own program and goes no further.

Blocks and `spans` alike. Programs, subcommands, options, recipes and settings must exist, and values be ones that the settings take.
"""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from megatron_entropic.config.loading import load_config, recipe_names
from megatron_entropic.config.sweep import sweep_runs
from tests.docs.test_docs import PAGES, ROOT

BLOCK = re.compile(r"^```(?:bash|sh)?\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
ANY_BLOCK = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
SAMPLE = {"N": "1", "GB": "1", "D": "bfloat16"}
"""What a reader puts in the place of a word that stands for a number or a type; names and paths are taken as they are."""
SETTING = "section.field=value"
ELSEWHERE = {
    "recipes.nemo": "NeMo-Run's command line, in an environment of its own: tests/recipes/launch",
    "recipes.overview": "has no options but --write; a test holds its tables to the code",
}
LAUNCHER = "slurm.launch"


class Parsed(BaseException):
    """The command line was understood; with it the program would begin. An event, which no `except Exception` of a program catches."""

    def __init__(self, options: argparse.Namespace, rest: Sequence[str]) -> None:
        super().__init__()
        self.options, self.rest = options, rest


def shown(text: str) -> Iterator[tuple[str, bool]]:
    """Commands of a page, each on one line, and whether they stand alone and so are whole."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ "), True
    for span in SPAN.findall(ANY_BLOCK.sub("", text)):
        yield " ".join(span.split()), False


def program_and_arguments(command: str) -> tuple[str, list[str]] | None:
    """(module, its arguments) of a command, whatever starts it; None when it is none of the project's."""
    if not re.match(r"[\w./$~=-]+( |$)", command):
        return None
    try:
        words = shlex.split(command.partition(" | ")[0], comments=True)
    except ValueError:  # prose, or a line of another language
        return None
    optional = [word if "=[" in word else word.strip("[]") for word in words]  # [section.field=value ...], but trackers=[table]
    words = [SAMPLE.get(word, word) for word in optional if word not in ("", SETTING)]
    for place, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name == "megatron-entropic" and word.endswith(("bin/megatron-entropic", name)):
            return "megatron_entropic.cli", words[place + 1 :]
        if name == "python" and words[place + 1 : place + 2] == ["-m"]:
            return words[place + 2], words[place + 3 :]
        if word.endswith(".sbatch") and words[0] == "sbatch":
            return LAUNCHER, ["convert" if name.startswith("convert") else "train", *words[place + 1 :]]
    return None


COMMANDS = [
    pytest.param(*found, whole, id=f"{page.name}: {command}")
    for page in PAGES
    for command, whole in dict.fromkeys(shown(page.read_text()))
    if (found := program_and_arguments(command)) and found[0] not in ELSEWHERE
]


def main_of(module: str) -> Any:
    """What `python -m module` calls."""
    found = importlib.import_module(module)
    return getattr(found, "main", None) or importlib.import_module(f"{module}.__main__").main


def parsed(module: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Parsed | None:
    """Runs a program up to where it has its options; None when it ended by itself, with help. Raises SystemExit when it refuses."""
    original, depth = argparse.ArgumentParser.parse_known_args, 0

    def parse_known_args(self: argparse.ArgumentParser, *given: Any, **named: Any) -> tuple[argparse.Namespace, list[str]]:
        nonlocal depth
        depth += 1
        try:
            options, rest = original(self, *given, **named)
        finally:
            depth -= 1
        understood = not rest or (hasattr(options, "overrides") and not any(word.startswith("-") for word in rest))
        if not depth and understood:  # else it is the program's to refuse it, or to look further
            raise Parsed(options, rest)
        return options, rest

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    try:
        main_of(module)()
    except Parsed as event:
        return event
    except SystemExit as end:
        if end.code:
            raise
    return None


def check(module: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises SystemExit or ConfigError when the command is not one that its program takes."""
    with monkeypatch.context() as patch:
        event = parsed(module, arguments, patch)
    if event is None or not hasattr(event.options, "overrides"):
        return
    source = str(getattr(event.options, "source", None) or getattr(event.options, "recipe", None))
    known = source.partition(":")[0].replace(".", "_").replace("-", "_") in recipe_names()
    overrides = [word for word in (*event.options.overrides, *event.rest) if word != "..."]
    if getattr(event.options, "sweep", None) in (True, ""):
        sweep_runs(source if known else "quickstart", overrides)
    else:
        load_config(source if known else None, overrides)


@pytest.mark.parametrize(("module", "arguments", "whole"), COMMANDS)
def test_a_command_can_be_typed(module: str, arguments: list[str], whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not whole and not any(re.search(r"[A-Z=]|^--", argument) for argument in arguments):  # the name of a command, in a sentence
        arguments = [*arguments, "--help"]
    check(module, arguments, monkeypatch)


def test_wrong_commands_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        "megatron-entropic trian quickstart",
        "megatron-entropic train quickstart --resumed",
        "megatron-entropic train quickstart trainer.step=3",
        "megatron-entropic train quickstart trainer.steps=few",
        "srun --gpus=1 .venv/bin/megatron-entropic plan quickstart --gpus many",
        "sbatch --nodes=3 slurm/train.sbatch my_recipe --swep=sweep.txt",
        "python -m recipes.lab --onlly x",
        "python -m slurm.submit train my_recipe optimiser.lr=1",
        "python -m checkpoint_tools inspect A B",
    ):
        found = program_and_arguments(command)
        assert found is not None
        with pytest.raises((SystemExit, ValueError)):
            check(*found, monkeypatch)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for command, _ in shown(page.read_text()):
            if named := re.fullmatch(r"make ([a-z0-9-]+)(  #.*)?", command):
                assert named[1] in targets, f"{page.name}: {command}"


def test_the_pages_show_commands() -> None:
    modules = {values.values[0] for values in COMMANDS}
    assert {"megatron_entropic.cli", "checkpoint_tools", "recipes.launch", "slurm.submit", LAUNCHER} <= modules
    assert len(COMMANDS) > 60
