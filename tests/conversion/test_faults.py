"""Kills, full disks, damaged and hostile files: nothing is lost, nothing is trusted, everything is named."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_tools.__main__ import main
from megatron_entropic.conversion.exporting import ExportOptions, export_hf
from megatron_entropic.conversion.importing import ImportOptions, import_hf
from megatron_entropic.conversion.keys import Split
from megatron_entropic.conversion.output import JOURNAL, OutputDirectory, OutputFile
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.files import write_hf
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.tables import hf_shapes
from tests import tiny_models
from tests.command_line import ROOT, megatron_entropic
from tests.conversion.conversions import contents, exported, imported
from tests.tiny_models import TINY_DECOMPOSE


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of 300 MB."""
    root = tmp_path_factory.mktemp("medium")
    template = Path(shutil.copytree(TINY_DECOMPOSE, root / "template"))
    (template / "model.safetensors").unlink()
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 40_000}
    tiny_models.edit_config(template, **sizes, head_dim=64, num_attention_heads=16, num_key_value_heads=4)
    shapes = hf_shapes(Architecture.from_hf(template))
    write_hf(root / "model", ((name, torch.randn(shape, dtype=torch.float32)) for name, shape in shapes.items()), template)
    return root / "model"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return imported(TINY_DECOMPOSE, tmp_path / "checkpoint", 2)


def start_import(source: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "checkpoint_tools", "import", str(source), str(out), "--workers", "1", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_import_goes_on_where_it_was(medium: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    process = start_import(medium, out, "--tp", "4", "--pp", "4")
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and finished_files(partial) < 3:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    done = [json.loads(line)["name"] for line in (partial / JOURNAL).read_text().splitlines()[1:]]
    assert 3 <= len(done) < 16, "killed in the middle"
    written = {name: (partial / name).stat().st_mtime_ns for name in done}
    import_hf(medium, out, ImportOptions(Split(4, 4)))
    assert {name: (out / name).stat().st_mtime_ns for name in done} == written, "finished files are not written again"
    assert not partial.exists()
    exported(out, tmp_path / "exported")
    assert contents(tmp_path / "exported") == contents(medium)


def finished_files(partial: Path) -> int:
    journal = partial / JOURNAL
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(medium: Path, tmp_path: Path) -> None:
    """Twice the largest tensor is 328 MB here; the whole model 490 MB. What the process has before it begins is measured too."""
    baseline = peak_bytes(tmp_path, "inspect", str(medium))
    for command in (
        ["import", str(medium), str(tmp_path / "in"), "--tp", "2"],
        ["export", str(tmp_path / "in"), str(tmp_path / "back")],
    ):
        assert peak_bytes(tmp_path, *command, "--workers", "2") - baseline < 250e6, command


def peak_bytes(folder: Path, *command: str) -> int:
    process = subprocess.Popen([sys.executable, "-m", "checkpoint_tools", *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_maxrss * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_before_and_while_writing_and_nothing_is_lost(medium: Path, small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"\.out\.partial: 0\.\d GB are to be written, 0\.\d GB are free"):
        imported(medium, small_disk / "out", 4, 2)
    assert list(small_disk.iterdir()) == [], "nothing was written yet"
    file = OutputFile(small_disk / "filler", lambda count: None)  # somebody else fills the disk meanwhile
    with pytest.raises(OSError, match=r"No space left on device.*filler"):
        file.write(bytes(2**27))
    file.close()
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=900m", str(small_disk)], check=True)
    assert imported(medium, small_disk / "out", 4, 2).is_dir()


def test_two_conversions_do_not_write_the_same_directory(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path / "out", {"same": True}), pytest.raises(CheckpointError, match="another process is writing"):
        OutputDirectory(tmp_path / "out", {"same": True})
    with pytest.raises(CheckpointError, match="left behind by another conversion"):
        OutputDirectory(tmp_path / "out", {"same": False})
    assert OutputDirectory(tmp_path / "out", {"same": True}).done == {}


def test_what_is_there_is_not_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    before = contents(checkpoint)
    with pytest.raises(FileExistsError, match="exists already"):
        imported(TINY_DECOMPOSE, checkpoint)
    assert contents(checkpoint) == before


def test_all_problems_of_a_source_are_listed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf_dir = tmp_path / "model"
    tiny_models.save("qwen2", hf_dir, tokenizer_size=tiny_models.VOCAB_SIZE + 5)
    weights = load_file(hf_dir / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 3)
    weights["model.layers.0.strange.weight"] = torch.zeros(2)
    weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()
    save_file(weights, hf_dir / "model.safetensors", metadata={"format": "pt"})
    assert main(["import", str(hf_dir), str(tmp_path / "out"), "--tp", "3", "--pp", "3"]) == 2
    error = capsys.readouterr().err
    for problem in (
        "model.layers.1.mlp.up_proj.weight [48, 32] is missing",
        "model.layers.0.mlp.down_proj.weight has shape [3, 3], config.json asks for [32, 48]",
        "unexpected tensor model.layers.0.strange.weight",
        "1 tensor(s) are bfloat16, among them model.norm.weight",
        "token 't103' has id 103",
        "parallel.tensor=3 does not divide the model's num_attention_heads=4",
        "parallel.pipeline=3 does not divide the model's num_hidden_layers=4",
    ):
        assert problem in error
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_a_checkpoint_of_another_model_is_refused_with_every_reason(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_models.save("qwen2", other)
    with pytest.raises(CheckpointError) as error:
        export_hf(checkpoint / "policy", other, tmp_path / "out", ExportOptions())
    text = str(error.value)
    assert "decoder.layers.self_attention.linear_qkv.weight has shape [3, 256, 128], config.json asks for [4, 64, 32]" in text
    assert "decoder.layers.3.self_attention.linear_qkv.bias is missing" in text
    assert "decoder.layers.self_attention.q_layernorm.weight [3, 32] maps to no tensor of a Qwen2ForCausalLM" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncate", "delete", "flip"])
@pytest.mark.parametrize(
    "name", ["policy/__0_0.distcp", "policy/__1_0.distcp", "policy/.metadata", "hf/config.json", "hf/tokenizer.json"]
)
def test_every_damage_is_named(checkpoint: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 3] ^= 16
        path.write_bytes(content)
    assert main(["inspect", str(checkpoint), "--checksums"]) == 2
    assert Path(name).name in capsys.readouterr().err
    outcome = megatron_entropic("train", "quickstart", f"model.hf_path={checkpoint}", f"run.dir={checkpoint.parent / 'run'}")
    assert outcome.code != 0
    assert Path(name).name in outcome.output
    assert "Traceback" not in outcome.output


class _Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch executed",))


def test_a_hostile_description_is_not_executed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (checkpoint / "policy" / ".metadata").write_bytes(pickle.dumps(_Hostile()))
    (checkpoint / "manifest.json").unlink()
    for command in (["inspect", str(checkpoint)], ["export", str(checkpoint), str(tmp_path / "out")]):
        assert main(command) == 2
        assert "refused: not the description of a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_exit_codes_of_verify(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(checkpoint), str(TINY_DECOMPOSE)]) == 0
    assert "equal: all 36 tensors are bit-identical" in capsys.readouterr().out
    assert main(["export", str(checkpoint), str(tmp_path / "narrow"), "--dtype", "bfloat16"]) == 0
    assert main(["verify", str(checkpoint), str(tmp_path / "narrow")]) == 1
    assert "model.norm.weight: float32 against bfloat16" in capsys.readouterr().out
    assert main(["verify", str(checkpoint), str(tmp_path / "nothing")]) == 2


@pytest.mark.slow
def test_logits_are_compared_with_transformers(checkpoint: Path, tmp_path: Path) -> None:
    code, shown = verify_logits(checkpoint, TINY_DECOMPOSE, "666=", "12=")
    assert (code, "within the tolerance of 1e-05" in shown) == (0, True), shown
    changed = Path(shutil.copytree(TINY_DECOMPOSE, tmp_path / "changed"))
    weights = load_file(changed / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 1.0
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    code, shown = verify_logits(checkpoint, changed, "666=")
    assert (code, "beyond the tolerance of 1e-05" in shown) == (1, True), shown


def verify_logits(a: Path, b: Path, *prompts: str) -> tuple[int, str]:
    """In a process of its own: Megatron-Core's groups and patches are not for this one, which forks ranks."""
    command = [sys.executable, "-m", "checkpoint_tools", "verify", str(a), str(b), "--logits"]
    done = subprocess.run(
        [*command, *(word for prompt in prompts for word in ("--prompt", prompt))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
