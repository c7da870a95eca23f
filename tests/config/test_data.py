"""Sources of data as settings: on the command line, in a file, in a recipe; what is wrong with one is named."""

from pathlib import Path

import pytest

from megatron_entropic.config import Config, DataConfig, DataSource, TaskConfig
from megatron_entropic.config.data import VerifierPart
from megatron_entropic.config.loading import ConfigError, load_config, override, save_config, to_dict
from megatron_entropic.config.resume import differences


def load(*overrides: str) -> Config:
    return load_config(None, ["task.name=data", *overrides])


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("", ()),
        ("x.jsonl", (DataSource(path="x.jsonl"),)),
        ("data #2/my rows.jsonl", (DataSource(path="data #2/my rows.jsonl"),)),
        ("3", (DataSource(path="3"),)),
        ("[a.jsonl, 2024-11-25]", (DataSource(path="a.jsonl"), DataSource(path="2024-11-25"))),
        ("{path: 7, weight: 2}", (DataSource(path="7", weight=2.0),)),
        ("[{path: 'a #1', verifier: exact, filter: 'level >= 3'}]", (DataSource(path="a #1", verifier="exact", filter="level >= 3"),)),
        (
            "[{path: a, prompt_field: 1, template_options: {enable_thinking: false}, system: yes}]",
            (DataSource(path="a", prompt_field="1", template_options={"enable_thinking": False}, system="yes"),),
        ),
        (
            "[{path: a, verifier: [{name: exact, weight: 2}, {name: math}]}]",
            (DataSource(path="a", verifier=(VerifierPart(name="exact", weight=2.0), VerifierPart(name="math"))),),
        ),
    ],
)
def test_sources_are_read_saved_and_read_again(tmp_path: Path, text: str, sources: tuple[DataSource, ...]) -> None:
    cfg = load(f"data.train={text}")
    assert cfg.data.train == sources
    assert load(override("data.train", to_dict(cfg)["data"]["train"])) == cfg
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == cfg


def test_a_recipe_gives_them_as_records() -> None:
    cfg = Config(task=TaskConfig(name="data"), data=DataConfig(train=("a.jsonl", DataSource(path="b"))))  # type: ignore[arg-type]
    assert cfg.data.train == (DataSource(path="a.jsonl"), DataSource(path="b"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.train=[{path: a, promt_field: x}]",
            r"unknown setting 'data\.train\.0\.promt_field'; did you mean 'data\.train\.0\.prompt_field'",
        ),
        ("data.train=[{path: a}, {path: b, weight: 0}]", r"data\.train\.1\.weight=0: input should be greater than 0"),
        ("data.train=[{weight: 1}]", r"data\.train\.0\.path=.*: field required"),
        ("data.train=[{path: a, prompt_template: x}]", r"data\.train\.0\.prompt_template='x': must contain \{prompt\}"),
        ("data.train=[{path: a, verifier_options: {x: 1}}]", r"verifier_options belong to one verifier"),
        ("data.train=[{path: a", "not valid YAML"),
        ("data.held_out=1", r"data\.held_out=1: input should be less than 1"),
        ("data.part=held_out", r"data\.part=held_out needs data\.held_out"),
        ("data.curriculum_low=1", r"data\.curriculum_low=1 must be below data\.curriculum_high=1"),
        ("data.max_prompt_tokens=-1", "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(override)


def test_sources_that_no_task_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.train is given, but task\.name=decompose does not read it; say task\.name=data"):
        load_config(None, ["data.train=x.jsonl"])


def test_a_resumed_run_asks_before_other_data() -> None:
    saved, now = to_dict(load("data.train=a.jsonl")), to_dict(load("data.train=b.jsonl"))
    (change,) = differences(saved, now)
    assert (change.setting, change.allowed, change.concerns_prompts) == ("data.train", False, True)
    assert change.consequence == "other prompts or rewards from here on"
    del saved["data"]  # of a version that had none
    assert [change.setting for change in differences(saved, to_dict(load()))] == []
