"""Sweeps: which commas separate values, which runs there are, and what their folders are called."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.config.loading import ConfigError
from megatron_entropic.config.sweep import LONGEST_FOLDER, folder_name, split_values, sweep_runs


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.7,0.85", ["0.7", "0.85"]),
        ("0.7, 0.85", ["0.7", "0.85"]),
        ("one", ["one"]),
        ("", [""]),
        (" a b ", [" a b "]),
        ("[tensorboard,wandb]", ["[tensorboard,wandb]"]),
        ("[tensorboard,wandb],[]", ["[tensorboard,wandb]", "[]"]),
        ("{low: 1, high: 30},{low: 2, high: 5}", ["{low: 1, high: 30}", "{low: 2, high: 5}"]),
        ("[[0, 1.0], [10, 0.5]],[]", ["[[0, 1.0], [10, 0.5]]", "[]"]),
        (r"first\, then", ["first, then"]),
        (r"\frac\,x,y", [r"\frac,x", "y"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("{path: 'a,b]'},c", ["{path: 'a,b]'}", "c"]),
        ("O'Brien's,b", ["O'Brien's", "b"]),
    ],
)
def test_which_commas_separate(text: str, values: list[str]) -> None:
    assert split_values("section.field", text) == values


@pytest.mark.parametrize(
    ("text", "says"),
    [("a,,b", "missing"), ("a,", "missing"), ("1,2,1", "1 is there twice"), ("[a,b", "] is missing"), ("'a,b", "' is")],
)
def test_what_is_no_list_of_values_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.field=") as raised:
        split_values("section.field", text)
    assert says in str(raised.value)


def test_every_combination_is_a_run_in_a_folder_of_its_own() -> None:
    fixed = ["run.name=mine", "control.preset=entropic_released", "trainer.trackers=[tensorboard,tensorboard]"]
    folder, runs = sweep_runs("quickstart", [*fixed, "control.target_entropy=0.7,0.85", "trainer.seed=0,1"])
    assert folder == Path("runs/mine")
    assert [run.folder for run in runs] == [f"target_entropy={target},seed={seed}" for target in (0.7, 0.85) for seed in (0, 1)]
    assert [(run.cfg.control.target_entropy, run.cfg.trainer.seed) for run in runs] == [(0.7, 0), (0.7, 1), (0.85, 0), (0.85, 1)]
    assert runs[3].overrides == (
        *["control.preset=entropic_released", "trainer.trackers=[tensorboard,tensorboard]"],
        *["control.target_entropy=0.85", "trainer.seed=1"],
        *["run.name=mine-target_entropy=0.85,seed=1", "run.dir=runs/mine/target_entropy=0.85,seed=1"],
    )
    assert runs[3].cfg.run.name == "mine-target_entropy=0.85,seed=1"


def test_a_preset_may_be_swept_and_given_folders_hold_the_runs() -> None:
    folder, runs = sweep_runs("quickstart", ["control.preset=entropic_released,aent_released", "run.dir=some where"])
    assert folder == Path("some where")
    assert [run.cfg.control.kind for run in runs] == ["entropic", "aent"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trainer.seed=1"], "no setting has several values"),
        (["run.name=a,b"], "run.name has several values"),
        (["trainer.seed=1,2", "trainer.seed=3"], "trainer.seed is given twice"),
        (["control.target_entropy=0.7,0.70"], "target_entropy=0.7 and target_entropy=0.70 are the same run"),
        (["trainer.seed=0,x", "trainer.steps=1,2"], "the run with trainer.seed=x trainer.steps=1: "),
        (["trainer.sed=0,1"], "did you mean 'trainer.seed'"),
        ([f"trainer.seed={','.join(map(str, range(40)))}", f"trainer.steps={','.join(map(str, range(40)))}"], "1600 runs"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_runs(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        sweep_runs("quickstart", overrides)
    assert says in str(raised.value)


def test_names_of_folders_are_safe_and_tell_values_apart() -> None:
    assert folder_name({"a.seed": "1", "b.seed": "2"}) == "a.seed=1,b.seed=2"
    assert folder_name({"optimizer.lr": "1e-6"}) == "lr=1e-6"
    paths = [folder_name({"task.options.path": path}) for path in ("data/a b#1.jsonl", "data/a-b-1.jsonl", "../../etc")]
    assert len(set(paths)) == 3
    assert all("/" not in path and " " not in path and "#" not in path for path in paths)


@given(st.dictionaries(st.sampled_from(["a.x", "b.x", "task.options.y", "a.z"]), st.text(min_size=1, max_size=300), min_size=1))
def test_any_value_gives_a_folder(chosen: dict[str, str]) -> None:
    name = folder_name(chosen)
    assert len(name) <= LONGEST_FOLDER
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-=,")
    assert name[0] not in "-.~"
