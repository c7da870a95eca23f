"""Secrets among the settings: kept for the run itself, shown to nobody."""

from pathlib import Path

import pytest

from megatron_entropic.config.loading import ConfigError, load_config, save_config, to_dict
from megatron_entropic.config.resume import differences
from megatron_entropic.config.secrets import argument_shown, without_secrets
from megatron_entropic.observability.history import read_history, record_start
from megatron_entropic.observability.run_data import load_run

HOOK = "https://hooks.example:8443/services/T0/HIDDEN"
STORE = "https://me:HIDDEN@mlflow.example/store"


def test_settings_are_shown_without_them(tmp_path: Path) -> None:
    cfg = load_config("quickstart", [f"run.dir={tmp_path}", f"alerts.webhook={HOOK}", f"tracking.mlflow_uri={STORE}"])
    shown = without_secrets(to_dict(cfg))
    assert shown["alerts"]["webhook"] == "https://hooks.example/***"
    assert shown["tracking"]["mlflow_uri"] == "https://***@mlflow.example/store"
    assert shown["trainer"] == to_dict(cfg)["trainer"]
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").alerts.webhook == HOOK, "a resumed run posts there too"
    assert "HIDDEN" not in str(load_run(tmp_path).config), "the report shows these"


def test_a_resumed_run_compares_what_is_shown() -> None:
    cfg = load_config("quickstart", [f"alerts.webhook={HOOK}"])
    saved = without_secrets(to_dict(cfg))
    assert differences(saved, to_dict(cfg)) == []
    (change,) = differences(saved, to_dict(load_config("quickstart", ["alerts.webhook=https://other.example/HIDDEN"])))
    assert change.allowed
    assert "HIDDEN" not in str(change)


def test_neither_history_nor_errors_name_them(tmp_path: Path) -> None:
    record_start(tmp_path, ["train", "quickstart", f"alerts.webhook={HOOK}", "run.name=a b", f"tracking.mlflow_uri={STORE}"])
    (start,) = read_history(tmp_path)
    assert "HIDDEN" not in start.command
    assert "alerts.webhook=https://hooks.example/***" in start.command
    assert "'run.name=a b'" in start.command
    assert argument_shown(f"--overrides alerts.webhook='{HOOK}' x=1") == "--overrides alerts.webhook=https://hooks.example/*** x=1"


@pytest.mark.parametrize(
    "url", ["hooks.example/HIDDEN", "ftp://h/HIDDEN", "http://", "https://h:port/HIDDEN", "https://[::1/HIDDEN", "env:1 HIDDEN"]
)
def test_what_is_no_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"alerts.webhook must be a URL") as raised:
        load_config("quickstart", [f"alerts.webhook={url}"])
    assert "HIDDEN" not in str(raised.value)


def test_bands_must_be_bands() -> None:
    with pytest.raises(ConfigError, match=r"alerts.entropy_low=2 must be below alerts.entropy_high=1"):
        load_config("quickstart", ["alerts.entropy_low=2", "alerts.entropy_high=1"])
