"""Values that are not finite, or not any more in another type: refused, or counted when they are asked for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_tools.__main__ import main
from tests import tiny_models
from tests.conversion.conversions import imported

DOWN = "model.layers.0.mlp.down_proj.weight"


def model(folder: Path, value: float) -> Path:
    """A bfloat16 model with `value` twice in one of its weights."""
    tiny_models.save("qwen3", folder)
    tiny_models.edit_config(folder, dtype="bfloat16")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors[DOWN][0, :2] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_cast_that_overflows_is_refused_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, out = imported(model(tmp_path / "model", 1e5), tmp_path / "imported"), tmp_path / "out"
    assert main(["export", str(checkpoint), str(out), "--dtype", "float16"]) == 2
    error = capsys.readouterr().err
    assert f"2 value(s) or more of tensor {DOWN} are NaN or infinite in float16, which ends at 65504; take a wider --dtype" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imported", "model"], "a refusal leaves nothing behind"
    assert main(["export", str(checkpoint), str(out), "--dtype", "float16", "--allow-non-finite"]) == 0
    assert "2 value(s) were written as NaN or infinity" in capsys.readouterr().err
    assert torch.isinf(load_file(out / "model.safetensors")[DOWN]).sum() == 2
    assert main(["export", str(checkpoint), str(tmp_path / "wide"), "--dtype", "float32"]) == 0


def test_after_a_refusal_the_type_it_asks_for_can_be_taken(tmp_path: Path) -> None:
    checkpoint, out = imported(model(tmp_path / "model", 1e5), tmp_path / "imported", 2), tmp_path / "out"
    assert main(["export", str(checkpoint), str(out), "--dtype", "float16", "--shard-gb", "0.00001"]) == 2
    assert main(["export", str(checkpoint), str(out), "--dtype", "float32"]) == 0
    assert main(["import", str(out), str(tmp_path / "again"), "--dtype", "float16", "--pp", "2"]) == 2
    assert main(["import", str(out), str(tmp_path / "again"), "--dtype", "bfloat16"]) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_model_is_not_imported_unless_asked_for(tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]) -> None:
    broken, out = model(tmp_path / "model", value), tmp_path / "out"
    assert main(["inspect", str(broken)]) == 0, "headers only"
    assert "model: sound by its headers and sizes; no weight was checked for NaN and infinity: --values" in capsys.readouterr().out
    assert main(["inspect", str(broken), "--values"]) == 2
    assert main(["import", str(broken), str(out), "--tp", "2"]) == 2
    assert capsys.readouterr().err.count(f"of tensor {DOWN} are NaN or infinite in bfloat16") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "a refusal leaves nothing behind"
    assert main(["import", str(broken), str(out), "--tp", "2", "--allow-non-finite"]) == 0
    assert "2 value(s) were written" in capsys.readouterr().err
    assert main(["inspect", str(out), "--values"]) == 2
    assert main(["inspect", str(imported(model(tmp_path / "sound", 1.0), tmp_path / "whole")), "--values"]) == 0
    assert "whole: sound, all values included" in capsys.readouterr().out
