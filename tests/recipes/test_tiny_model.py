"""The tiny models: the shipped ones are what their cards say, and the recipe that makes them works."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_entropic.tasks import Problem
from megatron_entropic.tasks.addition import Addition
from megatron_entropic.tasks.decompose import Decompose
from recipes.make_tiny_model import CHARACTERS, Quality, build_model, main, measure, training_batch
from recipes.tiny_lessons import LESSONS, WRONG_DIGITS

MODELS = Path(__file__).parents[2] / "models"
TOKENIZER = AutoTokenizer.from_pretrained(MODELS / "tiny-decompose")
FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def test_every_lesson_has_its_model() -> None:
    assert sorted(folder.name for folder in MODELS.glob("tiny-*")) == sorted(f"tiny-{name}" for name in LESSONS)


@pytest.mark.parametrize("name", LESSONS)
def test_the_folder_is_complete_and_small(name: str) -> None:
    files = list((MODELS / f"tiny-{name}").iterdir())
    assert sorted(file.name for file in files) == FILES
    assert sum(file.stat().st_size for file in files) < 5_000_000
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)


@pytest.mark.parametrize("name", LESSONS)
def test_the_configuration(name: str) -> None:
    model = MODELS / f"tiny-{name}"
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config["vocab_size"], config["head_dim"], config["eos_token_id"], config["bos_token_id"]) == (99, 32, 1, None)
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == 1
    with safe_open(model / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F32"}  # noqa: SIM118  (no mapping)


def test_the_models_differ_in_their_weights_alone() -> None:
    for file in set(FILES) - {"README.md", "model.safetensors"}:
        assert len({(MODELS / f"tiny-{name}" / file).read_bytes() for name in LESSONS}) == 1, file


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


def shipped(name: str) -> Quality:
    """Measurements of the shipped model on problems of another seed; the card must say the same of its own."""
    model = MODELS / f"tiny-{name}"
    quality = measure(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), LESSONS[name].task(12345), 256)
    card = (model / "README.md").read_text()
    stated = Quality(
        512, *(float(re.search(rf"\| {row}[^|]*\| ([0-9.]+)", card)[1]) for row in ("avg@8", "pass@8", "greedy", "entropy"))
    )
    assert quality.avg_at_8 == pytest.approx(stated.avg_at_8, abs=0.03)
    assert quality.greedy == pytest.approx(stated.greedy, abs=0.04)
    assert quality.entropy == pytest.approx(stated.entropy, abs=0.02)
    return quality


def test_the_shipped_decompose_model_is_what_the_card_says() -> None:
    """RL needs something to do, and an entropy to lose."""
    quality = shipped("decompose")
    assert 0.7 < quality.avg_at_8 < 0.9
    assert quality.pass_at_8 > 0.98
    assert quality.greedy > 0.9
    assert 0.84 < quality.entropy < 0.95


def test_the_shipped_addition_model_is_what_the_card_says() -> None:
    """It knows how to add, and half of its samples are wrong all the same."""
    quality = shipped("addition")
    assert 0.5 < quality.avg_at_8 < 0.7
    assert quality.pass_at_8 > 0.98
    assert quality.greedy > 0.95
    assert 0.6 < quality.entropy < 0.9


@pytest.mark.parametrize("task", [Decompose(seed=0), Addition(seed=0)])
def test_an_untrained_model_measures_as_such(task: Decompose | Addition) -> None:
    quality = measure(build_model(0), task, 16)
    assert quality.avg_at_8 == quality.greedy == 0.0
    assert quality.entropy > 3


@pytest.mark.parametrize("name", LESSONS)
def test_labels_are_the_answers_alone(name: str) -> None:
    tokens_BT, labels_BT = training_batch(random.Random(0), LESSONS[name], 64)
    for tokens, labels in zip(tokens_BT.tolist(), labels_BT.tolist(), strict=True):
        prompt = tokens.index(TOKENIZER("=").input_ids[0]) + 1
        assert labels[:prompt] == [-100] * prompt
        assert [t for t in labels if t != -100] == [t for t in tokens[prompt:] if t != 0]
        assert [t for t in tokens if t != 0][-1] == 1


def test_decompose_examples_are_right() -> None:
    rng = random.Random(0)
    for _ in range(200):
        prompt, answer = LESSONS["decompose"].example(rng)
        total = int(re.fullmatch(r"(\d{3})=", prompt)[1])
        assert Decompose(seed=0).score(Problem(prompt, {"total": total}), answer) == 1.0


def test_addition_examples_have_their_share_of_wrong_digits() -> None:
    rng = random.Random(0)
    pairs = []
    for _ in range(3000):
        prompt, answer = LESSONS["addition"].example(rng)
        first, second = map(int, re.fullmatch(r"(\d{2})\+(\d{2})=", prompt).groups())
        right = str(first + second)
        assert len(answer) == len(right)
        pairs += zip(answer, right, strict=True)
    wrong = sum(given != right for given, right in pairs) / len(pairs)
    assert wrong == pytest.approx(0.9 * WRONG_DIGITS, abs=0.02)  # a tenth of the new digits is the old one


@pytest.mark.slow
@pytest.mark.parametrize("name", LESSONS)
def test_the_recipe_writes_a_model_and_repeats_itself(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        main(["--task", name, "--out", str(tmp_path / folder), "--steps", "3", "--batch", "8"])
    assert "step     3" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == FILES
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "a").config.vocab_size == 99
    assert (tmp_path / "a" / "README.md").read_text().startswith(f"# tiny-{name}\n")
