"""The command line: options and overrides in any order, typos refused, presets listed."""

import argparse

import pytest

from megatron_entropic import cli
from megatron_entropic.config_control import PRESETS
from megatron_entropic.settings_reference import settings_markdown, settings_reference


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> argparse.Namespace:
    """What the command would be called with."""
    called: list[argparse.Namespace] = []

    def command(options: argparse.Namespace) -> int:
        called.append(options)
        return 0

    monkeypatch.setattr(cli, f"_{arguments[0]}", command)
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
        (["report", "RUN", "OTHER"], "unrecognized arguments: OTHER"),
        (["train"], "arguments are required: RECIPE"),
        (["train", "quickstart", "--overwrite", "trainer.step=5"], "did you mean 'trainer.steps'"),
        (["train", "quickstart", "--overwrite", "5"], "override '5' has no '='"),
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
