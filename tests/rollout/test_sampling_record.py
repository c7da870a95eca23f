"""A replay is of what was sampled: the same temperature, the same model in whatever format, or it is refused."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from megatron_entropic.config import Config, ModelConfig, RolloutConfig, RunConfig
from megatron_entropic.config.loading import save_config
from megatron_entropic.rollout.sampling_record import NAME, check_replay, record_sampling
from megatron_entropic.rollout.types import RolloutError
from megatron_entropic.start_checks.start import check_start
from tests.conversion.conversions import imported
from tests.tiny_models import TINY_DECOMPOSE


def config(run_dir: Path, *, temperature: float = 1.0, model: Path = TINY_DECOMPOSE, replay: Path | None = None) -> Config:
    """A run that samples by itself, or replays the run in the folder `replay`."""
    engine = {"engine": "local"} if replay is None else {"engine": "replay", "replay_path": replay / "rollouts"}
    (run_dir / "rollouts").mkdir(parents=True, exist_ok=True)
    rollout = RolloutConfig(temperature=temperature, **engine)  # type: ignore[arg-type]
    return Config(run=RunConfig(dir=run_dir), model=ModelConfig(hf_path=model), rollout=rollout)


def record(cfg: Config, first_step: int) -> None:
    record_sampling(cfg.run_dir, cfg.model, cfg.rollout, first_step)


def check(cfg: Config) -> None:
    check_replay(cfg.model, cfg.rollout)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    record(config(tmp_path / "recorded", temperature=0.7), 0)
    return tmp_path / "recorded"


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """The same architecture and tokenizer with other weights."""
    folder = Path(shutil.copytree(TINY_DECOMPOSE, tmp_path / "other"))
    tensors = {name: tensor * 1.01 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_another_temperature_or_model_is_refused_before_anything_starts(recorded: Path, other_model: Path, tmp_path: Path) -> None:
    check(config(tmp_path / "same", temperature=0.7, replay=recorded))
    with pytest.raises(RolloutError, match=r"step 0 on by rollout\.engine=local at rollout\.temperature=0\.7, not 0\.5: "):
        check_start(config(tmp_path / "hotter", temperature=0.5, replay=recorded))
    with pytest.raises(RolloutError, match=r"from another model than model\.hf_path=.*other: give the recorded run's"):
        check_start(config(tmp_path / "other-run", temperature=0.7, model=other_model, replay=recorded))


def test_the_same_model_in_another_format_or_without_weights_is_the_same(recorded: Path, tmp_path: Path) -> None:
    for model in (imported(TINY_DECOMPOSE, tmp_path / "imported", 2), tmp_path / "bare"):
        if model.name == "bare":
            shutil.copytree(TINY_DECOMPOSE, model)
            (model / "model.safetensors").unlink()
        check(config(tmp_path / "run", temperature=0.7, model=model, replay=recorded))


def test_a_run_resumed_at_another_temperature_is_not_of_one_piece(recorded: Path, tmp_path: Path) -> None:
    record(config(recorded, temperature=0.7), 3)
    record(config(recorded, temperature=0.9), 5)
    with pytest.raises(RolloutError, match=r"step 5 on by .* at rollout\.temperature=0\.9, not 0\.7"):
        check(config(tmp_path / "run", temperature=0.7, replay=recorded))
    record(config(recorded, temperature=0.7), 5)  # done again from there as at first
    check(config(tmp_path / "run", temperature=0.7, replay=recorded))


def test_a_replay_of_a_replay_is_one_of_the_first_run(recorded: Path, tmp_path: Path) -> None:
    record(config(tmp_path / "second", temperature=0.7, replay=recorded), 0)
    with pytest.raises(RolloutError, match=r"engine=local at rollout\.temperature=0\.7"):
        check(config(tmp_path / "third", temperature=1.0, replay=tmp_path / "second"))


def test_records_of_before_are_judged_by_their_runs_settings(recorded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (recorded / "rollouts" / NAME).unlink()
    check(config(tmp_path / "run", temperature=1.0, replay=recorded))
    assert "says at which temperature and from which model" in caplog.text
    save_config(config(recorded, temperature=0.7), recorded / "config.yaml")
    check(config(tmp_path / "run", temperature=0.7, replay=recorded))
    with pytest.raises(RolloutError, match=r"rollout\.temperature=0\.7, not 1: "):
        check(config(tmp_path / "run", temperature=1.0, replay=recorded))


def test_a_damaged_record_is_named(recorded: Path, tmp_path: Path) -> None:
    for content in ("{", '[{"temperature": 1}]'):
        (recorded / "rollouts" / NAME).write_text(content)
        with pytest.raises(RolloutError, match=r"sampling\.json: not a record of how rollouts were sampled"):
            check(config(tmp_path / "run", replay=recorded))
