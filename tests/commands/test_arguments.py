"""The command line: options and overrides in any order, typos refused, presets listed."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic import cli
from megatron_entropic.commands import evaluate as evaluation
from megatron_entropic.config.control import PRESETS
from megatron_entropic.config.loading import load_config
from megatron_entropic.config.reference import settings_markdown, settings_reference
from megatron_entropic.planning.cluster import gigabytes
from megatron_entropic.system.shipped_files import models_folder
from tests.command_line import ROOT


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> argparse.Namespace:
    """Arguments that the command would be called with."""
    called: list[argparse.Namespace] = []

    def command(options: argparse.Namespace) -> int:
        called.append(options)
        return 0

    monkeypatch.setattr(evaluation if arguments[0] == "evaluate" else cli, f"_{arguments[0]}", command)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    return called[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["quickstart", "a.b=1", "c.d=2", "--overwrite"],
        ["quickstart", "--overwrite", "a.b=1", "c.d=2"],
        ["--overwrite", "quickstart", "a.b=1", "c.d=2"],
        ["quickstart", "a.b=1", "--overwrite", "c.d=2"],
    ],
)
def test_train_takes_overrides_anywhere_and_in_their_order(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    options = parse(monkeypatch, "train", *arguments)
    assert (options.source, options.overrides, options.overwrite) == ("quickstart", ["a.b=1", "c.d=2"], True)


def test_evaluate_takes_overrides_after_options(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse(monkeypatch, "evaluate", "MODEL", "--prompts", "5", "a.b=-1", "--recipe", "quickstart", "c.d=2")
    assert (str(options.model), options.prompts, options.recipe) == ("MODEL", 5, "quickstart")
    assert options.overrides == ["a.b=-1", "c.d=2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "quickstart", "--overwrit", "a.b=1"], "unrecognized arguments: --overwrit"),  # nothing is deleted by half a word
        (["evaluate", "MODEL", "--promts", "5"], "unrecognized arguments: --promts"),
        (["settings", "control", "rollout"], "unrecognized arguments: rollout"),
        (["train"], "arguments are required: RECIPE"),
        (["train", "quickstart", "--overwrite", "trainer.step=5"], "did you mean 'trainer.steps'"),
        (["train", "quickstart", "--overwrite", "5"], "override '5' has no '='"),
        (["train", "quickstart", "--trainer.steps=5"], "settings have no dashes and one '=': trainer.steps=5"),
        (["evaluate", "MODEL", "--rollout.engine", "local"], "rollout.engine=VALUE"),
        (["train", "quickstart", "control.target=0.8"], "did you mean 'control.target_entropy'"),
        (["plan", "quickstart", "--gpu-memory", "much"], "'much' is no size; write GB as in 80 or 80GB"),
    ],
)
def test_typos_are_named(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_presets_are_listed_wherever_settings_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    for name, settings in PRESETS.items():
        assert name in shown
        for page in (settings_reference(), settings_reference("control"), settings_markdown()):
            assert f"control.preset={name}" in page
            assert all(f"{field}={value}" in page for field, value in settings.items())
    assert "control.preset" not in settings_reference("rollout")


def test_the_bare_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code in (None, 0)
    assert "Start with: megatron-entropic train quickstart" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "size"), [("80", 80.0), ("80GB", 80.0), ("79.6 GiB", 79.6), ("40960MiB", 40.0), ("0.5t", 512.0)])
def test_sizes_may_have_units(text: str, size: float) -> None:
    assert gigabytes(text) == size


def test_a_shipped_model_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart", ["model.hf_path=models/tiny-addition"]).model.hf_path == models_folder() / "tiny-addition"
    assert load_config("quickstart", ["model.hf_path=models/mine"]).model.hf_path == Path("models/mine")
    (tmp_path / "models" / "tiny-addition").mkdir(parents=True)  # a folder of that name that is there is the one that is meant
    assert load_config("quickstart", ["model.hf_path=models/tiny-addition"]).model.hf_path == Path("models/tiny-addition")


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        command = [sys.executable, "-m", "megatron_entropic.cli", "settings", "--markdown"]
        done = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (cli.EXIT_READER_GONE, "")
