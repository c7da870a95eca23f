"""What trackers, alerts and the endpoint lack is one error before anything is started."""

import sys
from pathlib import Path

import pytest

from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.start_checks.tracking import check_tracking
from megatron_entropic.system.rendezvous import listen


def check(*settings: str) -> None:
    check_tracking(load_config("quickstart", settings))


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(f"trainer.trackers=[tensorboard, {package}]")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=rf"trainer.trackers={package} needs the package {package}, .* pip install megatron-entropic\[{package}\]"
    ):
        check(f"trainer.trackers=[{package}]")


def test_a_database_needs_all_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ConfigError, match=r"tracking URI is a database \(sqlite\).*pip install mlflow"):
        check("trainer.trackers=[mlflow]", f"tracking.mlflow_uri=sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:HIDDEN@host/db")
    with pytest.raises(ConfigError) as raised:
        check("trainer.trackers=[mlflow]")
    assert "HIDDEN" not in str(raised.value)


def test_a_taken_port() -> None:
    with listen("127.0.0.1") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"tracking.prometheus_port={port}: cannot listen on 127.0.0.1 port {port}: Address already"
        ):
            check(f"tracking.prometheus_port={port}")
    check(f"tracking.prometheus_port={port}")


def test_a_webhook_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_HOOK", raising=False)
    with pytest.raises(ValueError, match=r"alerts.webhook=env:MY_HOOK: the environment variable MY_HOOK holds no URL"):
        check("alerts.webhook=env:MY_HOOK")
    monkeypatch.setenv("MY_HOOK", "https://hooks.example/T0/HIDDEN")
    check("alerts.webhook=env:MY_HOOK")
