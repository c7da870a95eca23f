"""The tiny model: the shipped one is what its card says, and the recipe that makes it works."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_entropic.tasks.decompose import Decompose
from recipes.make_tiny_model import CHARACTERS, Quality, build_model, main, measure, training_batch

MODEL = Path(__file__).parents[2] / "models" / "tiny-decompose"
TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def test_the_folder_is_complete_and_small() -> None:
    assert sorted(file.name for file in MODEL.iterdir()) == FILES
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 5_000_000
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in MODEL.iterdir())


def test_the_configuration() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config["vocab_size"], config["head_dim"], config["eos_token_id"], config["bos_token_id"]) == (99, 32, 1, None)
    assert json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"] == 1
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F32"}  # noqa: SIM118  (no mapping)


def test_every_character_is_one_token() -> None:
    assert len(TOKENIZER) == 99
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id, TOKENIZER.bos_token) == (0, 1, 2, None)
    assert [TOKENIZER(character).input_ids for character in CHARACTERS] == [[3 + i] for i in range(96)]
    assert TOKENIZER("é").input_ids == [2]


@given(st.text(alphabet=CHARACTERS))
def test_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert TOKENIZER.decode(ids) == text
    if not any(special in text for special in TOKENIZER.all_special_tokens):
        assert len(ids) == len(text)


def test_the_shipped_model_is_what_the_card_says() -> None:
    """RL needs something to do, and an entropy to lose."""
    quality = measure(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), Decompose(seed=12345), 256)
    assert 0.7 < quality.avg_at_8 < 0.9
    assert quality.pass_at_8 > 0.98
    assert quality.greedy > 0.9
    assert 0.84 < quality.entropy < 0.95
    card = (MODEL / "README.md").read_text()
    stated = Quality(
        512, *(float(re.search(rf"\| {row}[^|]*\| ([0-9.]+)", card)[1]) for row in ("avg@8", "pass@8", "greedy", "entropy"))
    )
    assert quality.avg_at_8 == pytest.approx(stated.avg_at_8, abs=0.03)
    assert quality.greedy == pytest.approx(stated.greedy, abs=0.04)
    assert quality.entropy == pytest.approx(stated.entropy, abs=0.02)


def test_an_untrained_model_measures_as_such() -> None:
    quality = measure(build_model(0), Decompose(seed=0), 16)
    assert quality.avg_at_8 == quality.greedy == 0.0
    assert quality.entropy > 3


def test_training_answers_are_right_and_prompts_unlabelled() -> None:
    import random

    tokens_BT, labels_BT = training_batch(random.Random(0), Decompose(seed=0), 64)
    for tokens, labels in zip(tokens_BT.tolist(), labels_BT.tolist(), strict=True):
        text = TOKENIZER.decode([t for t in tokens if t != 0])
        total, first, second = re.fullmatch(r"(\d{3})=(\d+)\+(\d+)<eos>", text).groups()
        assert int(first) + int(second) == int(total)
        assert labels[:4] == [-100] * 4
        assert [t for t in labels if t != -100] == [t for t in tokens[4:] if t != 0]


@pytest.mark.slow
def test_the_recipe_writes_a_model_and_repeats_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        main(["--out", str(tmp_path / name), "--steps", "3", "--batch", "8"])
    assert "step     3" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "a").config.vocab_size == 99
