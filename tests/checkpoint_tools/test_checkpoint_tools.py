"""inspect and verify on sound, different and broken checkpoints."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from checkpoint_tools.__main__ import main
from tests.tiny_models import TINY_DECOMPOSE


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_DECOMPOSE, tmp_path / "copy"))


def test_inspect_tells_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(TINY_DECOMPOSE)]) == 0
    shown = capsys.readouterr().out
    assert "Qwen3ForCausalLM: 3 layers, hidden 128" in shown
    assert "468,800 parameters in 36 tensors" in shown


def test_inspect_refuses_a_truncated_file(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["inspect", str(copy)]) == 2
    assert str(weights) in capsys.readouterr().err


def test_verify_of_equal_checkpoints_is_0_and_of_a_run_folder_means_its_model(copy: Path) -> None:
    assert main(["verify", str(TINY_DECOMPOSE), str(copy)]) == 0
    run_dir = copy.parent / "run"
    shutil.copytree(copy, run_dir / "hf")
    (run_dir / "metrics.jsonl").touch()
    assert main(["verify", str(TINY_DECOMPOSE), str(run_dir)]) == 0


def test_verify_measures_differences_and_names_what_is_missing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] += 0.5
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors")
    assert main(["verify", str(TINY_DECOMPOSE), str(copy)]) == 1
    shown = capsys.readouterr().out
    assert "model.norm.weight: largest difference 5.000e-01" in shown
    assert f"lm_head.weight: not in {copy}" in shown
