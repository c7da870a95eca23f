"""Which tokens end a response is one rule, whichever files disagree."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.stop_tokens import stop_token_ids
from tests.tiny_models import TINY_DECOMPOSE, edit_config


def model(folder: Path, generation: Any, config: Any, tokenizer: Any) -> Path:
    """A directory whose three files say these ends of a sequence; None: the file says nothing."""
    shutil.copytree(TINY_DECOMPOSE, folder)
    (folder / "generation_config.json").write_text(json.dumps({} if generation is None else {"eos_token_id": generation}))
    edit_config(folder, eos_token_id=config)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": tokenizer}))
    return folder


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "ids"),
    [
        ([7, 5, 7], 1, "<eos>", (5, 7)),
        (3, None, None, (3,)),
        (None, [4], "<eos>", (4,)),
        (None, None, "<eos>", (1,)),
        (None, None, {"content": "<eos>", "__type": "AddedToken"}, (1,)),
    ],
)
def test_the_first_file_that_says_something_decides(
    tmp_path: Path, generation: Any, config: Any, tokenizer: Any, ids: tuple[int, ...]
) -> None:
    assert stop_token_ids(model(tmp_path / "model", generation, config, tokenizer)) == ids


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "message"),
    [
        (None, None, None, "no eos_token_id in generation_config.json or config.json, and no eos_token of the tokenizer"),
        (None, None, "<nowhere>", "no eos_token_id"),
        ([1, 99], 1, "<eos>", r"generation_config\.json: eos_token_id = \[1, 99\] names no token of the vocabulary of 99"),
        ([], 1, "<eos>", r"generation_config\.json: eos_token_id = \[\]"),
        (None, "<eos>", "<eos>", r"config\.json: eos_token_id = '<eos>'"),
    ],
)
def test_what_names_no_token_is_refused(tmp_path: Path, generation: Any, config: Any, tokenizer: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        stop_token_ids(model(tmp_path / "model", generation, config, tokenizer))
