"""Values as typed: names and paths never go through YAML, everything else reads back as it was written."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.cli import main
from megatron_entropic.commands.resume import resumed_config
from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config, override, save_config
from megatron_entropic.config.values import text_of, value_of
from megatron_entropic.hf.directory import download_hint

AWKWARD = [
    "1234567",
    "2024-11-25",
    "12:30",
    "exp #2",
    "lr: 1e-6",
    "[a] *?",
    "a \"b\" 'c'",
    "$x_1$ <i>",
    "ñandú 実験",
    "null",
    "yes",
    "~x",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", [name for name in AWKWARD if name != "~x"])
def test_names_and_folders_are_taken_as_typed(tmp_path: Path, name: str) -> None:
    cfg = load_config("quickstart", [f"run.name={name}", f"model.hf_path={tmp_path / name}"])
    assert (cfg.run.name, cfg.model.hf_path) == (name, tmp_path / name)
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == cfg
    (tmp_path / "by_hand.yaml").write_text(f"model: {{hf_path: {tmp_path / 'x'}}}\nrun:\n  name: 2024-11-25\n  dir: 007 # mine\n")
    by_hand = load_config(tmp_path / "by_hand.yaml")
    assert (by_hand.run.name, by_hand.run.dir) == ("2024-11-25", Path("007"))


@pytest.mark.parametrize("name", AWKWARD)
def test_an_override_made_here_says_what_it_means(name: str) -> None:
    assert load_config("quickstart", [override("run.dir", Path(f"/x/{name}"))]).run_dir == Path(f"/x/{name}")
    if name != "~x":
        assert load_config("quickstart", [override("run.dir", Path(name))]).run_dir == Path(name)


@pytest.mark.parametrize("name", AWKWARD)
def test_the_run_that_is_named_is_gone_on_with_whatever_its_folder_is_called(tmp_path: Path, name: str) -> None:
    for number, folder in enumerate(("exp", "named", name)):
        save_config(load_config("quickstart", [f"trainer.seed={number}"]), tmp_path / folder / "config.yaml")
    cfg = resumed_config(tmp_path / name, ["trainer.steps=2"])
    assert (cfg.run_dir, cfg.trainer.seed) == (tmp_path / name, 2)


def test_a_command_to_paste_names_the_folder_to_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "exp #2"
    save_config(load_config("quickstart"), run / "config.yaml")
    with pytest.raises(SystemExit):
        main(["train", str(run)])
    command = capsys.readouterr().err.partition("`")[2].partition("`")[0]
    assert shlex.split(command, comments=True) == ["megatron-entropic", "train", str(run), "--resume"]


def test_nothing_is_said_by_null_or_an_empty_value() -> None:
    assert [load_config("quickstart", [f"run.dir={text}"]).run.dir for text in ("null", "", "./null")] == [None, None, Path("null")]
    with pytest.raises(ConfigError, match=r"override 'model.hf_path=': a path is needed"):
        load_config("quickstart", ["model.hf_path="])


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    cfg = load_config("quickstart", ["model.hf_path=~/m", "run.dir=~/r", "rollout.replay_path=~/p", "rollout.fleet_dir=~/f"])
    assert (cfg.model.hf_path, cfg.run_dir) == (Path("/home/me/m"), Path("/home/me/r"))
    assert (cfg.rollout.replay_path, cfg.rollout.fleet_dir) == (Path("/home/me/p"), Path("/home/me/f"))


@pytest.mark.parametrize("name", ["../x", "a/b", "-a", ".a", "~a", " a", "a ", "", "a\nb", "a\0", "x" * 81])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run.name=.*must name a folder"):
        load_config("quickstart", [f"run.name={name}"])


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1e-6", float, 1e-6),
        ("off", str, "off"),
        ("[--a, --b=1, 8, 2024-11-25]", tuple[str, ...], ["--a", "--b=1", "8", "2024-11-25"]),
        (
            "{path: 007, x: 1e-6, day: 2024-11-25, on: yes}",
            dict[str, Any],
            {"path": "007", "x": 1e-6, "day": "2024-11-25", "on": "yes"},
        ),
        ("[[10, 0.5]]", tuple[tuple[int, float], ...], [[10, 0.5]]),
    ],
)
def test_other_values_are_yaml_without_its_traps(text: str, kind: Any, value: Any) -> None:
    assert value_of(text, kind) == value


@given(JSON)
def test_values_read_back_as_they_were_written(value: Any) -> None:
    text = text_of({"path": "x", "value": value}, dict[str, Any])
    assert "\n" not in text
    assert value_of(text, dict[str, Any]) == {"path": "x", "value": value}


@given(st.text())
def test_texts_read_back_as_they_were_written(text: str) -> None:
    assert value_of(text_of(text, str), str) == text


def test_one_option_of_a_task_is_set_without_quotes() -> None:
    task = load_config("quickstart", ["task.name=reasoning_gym", "task.options.dataset=chain_sum", "task.options.min_terms=3"]).task
    assert task.options == {"dataset": "chain_sum", "min_terms": 3}
    both = load_config("qwen3_8b", ["task.options.prompt_template={prompt} #1"]).task
    assert both.options == {"path": "data/math.jsonl", "prompt_template": "{prompt} #1"}
    assert load_config("qwen3_8b", ["task.options.low=1", "task.name=decompose"]).task.options == {"low": 1}


@pytest.mark.parametrize("words", [["task.options={dataset:", "chain_sum}"], ["chain_sum}"], ["rollout.server_args=[--a,", "--b]"]])
def test_a_value_that_the_shell_has_split_gets_a_hint(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"the shell splits words at spaces: .*task\.options\.dataset=chain_sum"):
        load_config("quickstart", words)


def test_a_value_that_braces_were_taken_from_gets_a_hint() -> None:
    with pytest.raises(
        ConfigError, match=r"a mapping is needed, in quotes: 'task.options={NAME: VALUE}'; or set task.options.NAME=VALUE"
    ):
        load_config("quickstart", ["task.options=dataset:chain_sum"])


def test_a_recipe_file_may_lie_in_a_folder_with_a_colon(tmp_path: Path) -> None:
    folder = tmp_path / "lr: 1e-6"
    folder.mkdir()
    (folder / "mine.py").write_text(
        "from megatron_entropic.config import *\nVARIANTS = ('other',)\ndef mine(): return Config()\n"
        "def other(): return Config(trainer=TrainerConfig(steps=7))\n"
    )
    assert load_config(folder / "mine.py") == Config()
    assert load_config(f"{folder / 'mine.py'}:other").trainer.steps == 7


def test_a_name_on_the_hub_gets_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "hf download Qwen/Qwen2.5-1.5B --local-dir models/Qwen2.5-1.5B, then model.hf_path=models/" in download_hint(
        Path("Qwen/Qwen2.5-1.5B")
    )
    assert "hf download OWNER/x --local-dir models/x" in download_hint(Path("models/x"))
    assert download_hint(Path("/no/such")) == download_hint(Path("a/b/c")) == download_hint(Path("../x")) == ""
    (tmp_path / "here").mkdir()
    assert "OWNER/model" in download_hint(Path("here/model"))
