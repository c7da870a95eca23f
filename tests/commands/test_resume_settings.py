"""Settings allowed on resume: the same model under any name or none, settings by what they do, targets by who spoke last."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.cli import main
from megatron_entropic.commands.resume import BASE_MODEL, prepare_resume, resumed_config
from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config, to_dict
from megatron_entropic.config.resume import SettingsDifferenceError, differences, refuse
from megatron_entropic.control.target_file import read_target, write_target
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.trainer import train
from tests.command_line import megatron_entropic
from tests.run_ranks import run_ranks
from tests.tiny_models import TINY_DECOMPOSE, edit_config

BASE = (
    "rollout.engine=local",
    "parallel.tensor=1",
    "batch.prompts_per_step=4",
    "batch.samples_per_prompt=2",
    "checkpoint.every=1",
    "trainer.tensorboard=false",
)


def changed(**now: Any) -> dict[str, Any]:
    """The default settings with some others, `section__field=value`."""
    settings = to_dict(Config())
    for name, value in now.items():
        section, field = name.split("__")
        settings[section] = {**settings[section], field: value}
    return settings


def check(now: dict[str, Any], saved: dict[str, Any] | None = None, **options: bool) -> None:
    refuse(differences(saved or to_dict(Config()), now), Path("step-000002"), **options)


@pytest.mark.parametrize(
    "setting",
    [
        {"model__recompute": "full"},
        {"batch__max_tokens_per_micro_batch": 2048},
        {"parallel__tensor": 2},
        {"model__hf_path": "elsewhere"},
        {"run__name": "other"},
        {"optimizer__lr": 1e-4},
        {"reward__workers": 3},
        {"control__target_entropy": 0.7},
    ],
)
def test_what_cures_memory_or_moves_folders_may_change(setting: dict[str, Any]) -> None:
    check(changed(**setting))


@pytest.mark.parametrize(
    ("setting", "consequence"),
    [
        ({"batch__prompts_per_step": 4}, "some return, or never come"),
        ({"batch__samples_per_prompt": 4}, "groups of another size"),
        ({"batch__mini_batches": 2}, "another number of updates"),
        ({"task__name": "addition"}, "other prompts or rewards"),
        ({"control__kind": "none"}, "a controller without a past"),
        ({"trainer__seed": 1}, "other prompts and samples"),
    ],
)
def test_what_changes_the_method_says_what_changes_and_must_be_allowed(setting: dict[str, Any], consequence: str) -> None:
    with pytest.raises(
        SettingsDifferenceError, match=rf"--allow-change resumes with those of now:\n  - .*\n  \+ .*\n    .*{consequence}"
    ):
        check(changed(**setting))
    check(changed(**setting), allow_change=True)
    if not setting.keys() & {"batch__mini_batches", "control__kind"}:
        with pytest.raises(SettingsDifferenceError, match="settings that must not change"):
            check(changed(**setting), allow_change=True, ahead=True)


def test_what_the_state_does_not_fit_is_refused_whatever_is_allowed() -> None:
    for setting in ({"model__dtype": "float32"}, {"rollout__max_staleness": 1}):
        with pytest.raises(SettingsDifferenceError, match="settings that must not change"):
            check(changed(**setting), allow_change=True)


def test_a_setting_of_another_version_counts_as_its_default() -> None:
    saved = to_dict(Config())
    del saved["task"]["chat_template"], saved["batch"]["mini_batches"], saved["reward"]
    saved["batch"]["no_longer_known"] = 3
    check(to_dict(Config()), saved)
    (difference,) = differences(saved, changed(batch__mini_batches=2))
    assert (difference.setting, difference.saved, difference.now) == ("batch.mini_batches", 1, 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step from the model `base` beside it."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(TINY_DECOMPOSE, root / "base")
    settings = [*BASE, f"run.dir={root / 'run'}", f"model.hf_path={root / 'base'}", "trainer.steps=1", "trainer.export_hf=false"]
    cfg = load_config("quickstart", settings)
    run_ranks(train_run, 1, cfg)
    return root


def train_run(cfg: Config, allow_change: bool = False) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed), allow_change=allow_change)


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, with its config.yaml."""
    copy = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    saved = json.loads((copy / "checkpoints/step-000001/state.json").read_text())["settings"]
    saved["model"]["hf_path"] = str(shutil.copytree(finished / "base", tmp_path / "base"))
    (copy / "config.yaml").write_text(json.dumps(saved))
    return copy


def prepare(run_dir: Path, *overrides: str, allow_change: bool = False) -> Config:
    cfg = resumed_config(run_dir, overrides)
    assert prepare_resume(cfg, overrides, allow_change=allow_change)
    return cfg


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_whose_base_model_is_gone_goes_on_to_its_export(run_dir: Path) -> None:
    shutil.rmtree(run_dir.parent / "base")
    outcome = megatron_entropic("train", str(run_dir), "--resume", "trainer.steps=2", "trainer.export_hf=true", "checkpoint.keep=1")
    assert outcome.code == 0, outcome.output
    assert f"the base model is gone; resuming with the checkpoint's own, without its weights: {run_dir / BASE_MODEL}" in outcome.output
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")] == [0, 1]
    assert (run_dir / "hf" / "tokenizer.json").read_bytes() == (TINY_DECOMPOSE / "tokenizer.json").read_bytes()
    assert prepare(run_dir).model.hf_path == run_dir / BASE_MODEL, "and once more"


def test_the_same_model_elsewhere_or_without_weights_is_the_same(run_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "model.safetensors").unlink()
    assert prepare(run_dir).model.hf_path == base
    base.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to("moved")
    config = json.loads((tmp_path / "moved/config.json").read_text())
    (tmp_path / "moved/config.json").write_text(json.dumps(dict(reversed(config.items()))))
    for name in ("moved", "link"):
        assert prepare(run_dir, f"model.hf_path={tmp_path / name}").model.hf_path == tmp_path / name
    (tmp_path / "moved/tokenizer.json").unlink()
    assert prepare(run_dir, "trainer.steps=2").model.hf_path == run_dir / BASE_MODEL, "a cache that was purged"
    with pytest.raises(ValueError, match=r"nowhere/config\.json: no such file"):
        prepare(run_dir, f"model.hf_path={tmp_path / 'nowhere'}")


@pytest.mark.parametrize("keep", [25, 0])
def test_a_cut_companion_of_the_checkpoint_is_left_to_the_ranks_who_name_all_damage(run_dir: Path, keep: int) -> None:
    file = run_dir / "checkpoints/step-000001/hf/generation_config.json"
    file.write_bytes(file.read_bytes()[:keep])
    assert prepare(run_dir).model.hf_path == run_dir.parent / "base"


def test_another_model_is_refused_with_what_is_different(run_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    edit_config(base, rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0})
    with pytest.raises(ConfigError, match=r"not the model that this run was begun with: config\.json: rope was Rope\(.*, is Rope\("):
        prepare(run_dir)
    shutil.copy(TINY_DECOMPOSE / "config.json", base)
    tokenizer = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(tokenizer.replace("<eos>", "<end>"))
    with pytest.raises(ConfigError, match=r"tokenizer\.json has other content.*without it \(moved away\) the run resumes with"):
        prepare(run_dir)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_goes_on_with_another_controller_and_batch_when_allowed(run_dir: Path) -> None:
    settings = ("trainer.steps=2", "control.kind=none", "batch.prompts_per_step=2", "trainer.export_hf=false")
    with pytest.raises(SettingsDifferenceError, match=r"control\.kind"):
        prepare(run_dir, *settings)
    run_ranks(train_run, 1, prepare(run_dir, *settings, allow_change=True), True)
    first, second = read_metrics(run_dir / "metrics.jsonl")
    assert first["control/alpha"] is not None
    assert second["control/alpha"] is None


def test_a_target_that_is_given_wins_over_one_that_was_asked_for(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write_target(run_dir, 0.2)
    prepare(run_dir, "trainer.steps=5")
    asked = read_target(run_dir / "target.json")
    assert asked is not None
    assert asked.target_entropy == 0.2
    prepare(run_dir, "control.target_entropy=0.5")
    asked = read_target(run_dir / "target.json")
    assert asked is not None
    assert asked.target_entropy is None, "the schedule's again, which begins at 0.5"
    assert "control.target_entropy=0.5 replaces the target of 0.2 nats asked for in target.json" in caplog.text


def test_a_run_without_a_checkpoint_begins_anew_and_says_so(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    assert not prepare_resume(resumed_config(run_dir, ()), (), allow_change=False)
    assert "has no checkpoint: the run starts over; the 1 step(s) in" in caplog.text


def test_a_run_folder_without_resume_gets_a_hint(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", str(run_dir)])
    assert f"resume it by `megatron-entropic train {run_dir} --resume`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "quickstart", "--allow-change"])
    assert "--allow-change go with --resume" in capsys.readouterr().err
