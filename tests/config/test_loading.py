"""Settings: overrides, bounds, typos, round trip."""

from pathlib import Path

import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, field_names, load_config, recipe_names, save_config
from megatron_entropic.config.reference import settings_reference


def test_overrides_change_only_what_they_name() -> None:
    plain = load_config("quickstart")
    changed = load_config("quickstart", ["trainer.steps=3", "rollout.server_args=[--a, --b]", "run.dir=/x/y"])
    assert changed.trainer.steps == 3
    assert changed.rollout.server_args == ("--a", "--b")
    assert changed.run_dir == Path("/x/y")
    assert changed.control == plain.control


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.step=3", "unknown setting 'trainer.step'; did you mean 'trainer.steps'"),
        ("steps=3", "unknown setting 'steps'"),
        ("trainer.steps", "has no '='"),
        ("trainer.steps=-1", r"trainer.steps=-1: .*greater than or equal to 0"),
        ("trainer.steps=many", r"trainer.steps='many': .*integer"),
        ("control.kind=entropc", r"control.kind='entropc': .*'entropic'"),
        ("control.kp=.nan", r"control.kp=nan: .*finite"),
        ("control.entropy_low=0.5", "control.entropy_low=0.5 is above control.entropy_high=0.23"),
        ("batch.mini_batches=7", "must be a multiple of batch.mini_batches=7"),
        ("rollout.engine=replay", "needs rollout.replay_path"),
        ("run.name=../x", "run.name='../x'"),
        ("trainer.steps=[", "not valid YAML"),
        ("parallel.device=gpu", r"parallel.device='gpu': .*'auto' or 'cpu'"),
        (
            "parallel.gradient_overlap=maybe",
            "^quickstart: parallel.gradient_overlap='maybe': input should be 'auto' or a valid boolean, unable to interpret input$",
        ),
        (
            "rollout.gpu_memory_utilization=1.5",
            "^quickstart: rollout.gpu_memory_utilization=1.5: input should be 'auto' or less than or equal to 1$",
        ),
    ],
)
def test_a_bad_override_is_one_clear_error(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", [override])


@pytest.mark.parametrize(
    ("other", "message"), [("rollout.fleet_dir=/shared", "get their weights over NCCL"), ("rollout.engine=local", "has none")]
)
def test_a_gpu_is_not_shared_with_servers_that_cannot_be_on_it(other: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"rollout\.share_gpu=true.* {message}"):
        load_config("quickstart", ["rollout.share_gpu=true", other])


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_config("quickstrt")


def test_saved_config_reads_back_equal(tmp_path: Path) -> None:
    cfg = load_config("quickstart", ["trainer.seed=7"])
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == cfg


@pytest.mark.parametrize(
    ("text", "message"), [("trainer: {step: 3}", "trainer.step"), ("[", "is not YAML"), ("3", "holds no settings")]
)
def test_a_bad_config_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_recipe_files_work_too(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text("from megatron_entropic.config import Config\ndef mine() -> Config:\n    return Config()\n")
    assert load_config(recipe) == Config()
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"function empty\(\)"):
        load_config(tmp_path / "empty.py")
    with pytest.raises(ConfigError, match="no such recipe file"):
        load_config(tmp_path / "none.py")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name: str) -> None:
    assert load_config(name).run.name


def test_the_reference_lists_every_setting() -> None:
    reference = settings_reference()
    assert all(f"  {name}=" in reference for name in field_names())
    with pytest.raises(ConfigError, match="no section"):
        settings_reference("nope")
