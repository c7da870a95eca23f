"""Settings for trackers' tests: nothing leaves the machine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Config]:
    """The quickstart in a folder with an awkward name, tracked by the trackers named and no other."""

    def make(*trackers: str, **settings: object) -> Config:
        given = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
        return load_config(
            "quickstart",
            [
                f"run.dir={tmp_path / 'a run #1'}",
                "run.name=a run #1",
                "trainer.tensorboard=false",
                f"trainer.trackers=[{', '.join(trackers)}]",
                *given,
            ],
        )

    return make
