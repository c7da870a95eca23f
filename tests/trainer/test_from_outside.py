"""One of each thing that a table of the package names, brought from outside it and trained with: nothing in the package is edited."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_entropic.config.control import KINDS, settings_read_by
from megatron_entropic.config.loading import ConfigError, load_config, to_dict
from megatron_entropic.control import make_controller
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.recording import read_rollouts
from tests.command_line import megatron_entropic
from tests.tiny_models import TINY_DECOMPOSE

OUTSIDE = Path(__file__).with_name("outside.py")
SMALL = ("parallel.tensor=1", "trainer.steps=2", "batch.prompts_per_step=4", "batch.samples_per_prompt=4", "trainer.tensorboard=false")


def install(site: Path, *groups: str) -> None:
    """The installed metadata of a package with entry points."""
    info = site / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(groups) + "\n")
    shutil.copy(OUTSIDE, site / "outside.py")


@pytest.mark.slow
def test_one_of_each(tmp_path: Path) -> None:
    """The kind by an entry point, the architecture too, everything else by the file."""
    install(
        tmp_path / "site",
        "[megatron_entropic.control_kinds]\nsawtooth = outside:SAWTOOTH",
        "[megatron_entropic.architectures]\nMineForCausalLM = outside:FAMILY",
    )
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(TINY_DECOMPOSE, model)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"architectures": ["MineForCausalLM"]}))
    done = megatron_entropic(
        *("train", "quickstart", f"run.dir={run}", f"model.hf_path={model}", *SMALL, "checkpoint.every=1"),
        *(f"task.name={OUTSIDE}:make_task", f"algorithm.advantage={OUTSIDE}:doubled", f"algorithm.policy_loss={OUTSIDE}:reinforce"),
        *("control.kind=sawtooth", "control.options.by=0.375", f"control.actuator={OUTSIDE}:everything"),
        *(f"rollout.engine={OUTSIDE}:make_engine", f"trainer.trackers=[{OUTSIDE}:Lines]"),
        environ={"PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.code == 0, done.output
    first, second = read_metrics(run / "metrics.jsonl")
    assert [first["control/alpha"], second["control/alpha"]] == [0.0, 0.375]
    assert first["control/actuated_fraction"] == 1.0
    assert second["control/effort"] == 0.75
    (line, *logged) = (run / "lines.txt").read_text().splitlines()
    assert line == "from 0"
    assert [json.loads(text) for text in logged] == [[0, first["policy/entropy"]], [1, second["policy/entropy"]]]
    assert {record.rollout.server for record in read_rollouts(run / "rollouts", 0)} == {"outside"}
    state = json.loads((run / "checkpoints" / "step-000002" / "state.json").read_text())
    assert state["controller"] == {"alpha": 0.75}
    # As it was written, the loss of a step whose ratios are 1 is minus half the token mean of the advantages.
    rewards = [record.reward for record in read_rollouts(run / "rollouts", 0)]
    lengths = [len(record.rollout.response_ids) for record in read_rollouts(run / "rollouts", 0)]
    means = [sum(rewards[start : start + 4]) / 4 for start in range(0, 16, 4) for _ in range(4)]
    expected = -sum((reward - mean) * length for reward, mean, length in zip(rewards, means, lengths, strict=True)) / sum(lengths)
    assert first["loss/policy"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_kind_reads_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own options and what every kind reads; another setting is refused by name, and another kind starts without options."""
    name = f"control.kind={OUTSIDE}:SAWTOOTH"
    cfg = load_config("quickstart", [name, "control.options.by=0.25", "control.max_bad_steps=3"])
    assert cfg.control.options == {"by": 0.25}
    assert make_controller(cfg).state_dict() == {"alpha": 0.0}
    with pytest.raises(ConfigError, match=r"control.cov_share is given, but .*SAWTOOTH does not read it \(clip_cov, kl_cov do\)"):
        load_config("quickstart", [name, "control.cov_share=0.1"])
    with pytest.raises(ConfigError, match=r"control.options is given, but control.kind=none does not read it"):
        load_config("quickstart", ["control.kind=none", "control.options={by: 1}"])


@pytest.mark.parametrize(
    ("kind", "setting", "reader"),
    [("none", "target_entropy=0.5", "entropic, entropic"), ("entropic", "coefficient_lr=0.1", "aent"), ("aec", "kp=2", "entropic")],
)
def test_a_setting_of_another_kind(kind: str, setting: str, reader: str, tmp_path: Path) -> None:
    name = setting.partition("=")[0]
    message = rf"control.{name} is given, but control.kind={kind} does not read it \({reader}"
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", [f"control.kind={kind}", f"control.{setting}"])
    file = tmp_path / "mine.yaml"
    file.write_text(f"control:\n  kind: {kind}\n  {setting.replace('=', ': ')}\n")
    with pytest.raises(ConfigError, match=f"{file}: {message}"):
        load_config(file)


def test_every_setting_of_control_belongs_to_a_kind() -> None:

    settings = set(to_dict(load_config(None))["control"]) - {"options"}
    assert settings == {name for kind in KINDS for name in settings_read_by(kind)}


def test_no_kind_at_all(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("KIND = 3\n")
    cfg = load_config("quickstart", [f"control.kind={file}:KIND"])
    with pytest.raises(ValueError, match=f"control.kind={file}:KIND: KIND is no ControlKind but int"):
        make_controller(cfg)
