"""Stop tokens of a response: one rule for every engine, where transformers and vLLM have each their own.

The ids of generation_config.json, else those of config.json, else the tokenizer's end-of-sequence token.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_entropic.hf.directory import CONFIG_FILE, TOKENIZER_FILE
from megatron_entropic.hf.headers import CheckpointError

_FIELD = "eos_token_id"


def stop_token_ids(hf_dir: Path) -> tuple[int, ...]:
    """The ids that end a response of the model in `hf_dir`, ascending.

    Raises CheckpointError naming the file when what it says is no id of the vocabulary, or no file says anything.
    """
    for name in ("generation_config.json", CONFIG_FILE):
        found = _object(hf_dir / name).get(_FIELD)
        if found is not None:
            return _checked(hf_dir, name, found)
    token = _object(hf_dir / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and (hf_dir / TOKENIZER_FILE).is_file():
        found = Tokenizer.from_file(str(hf_dir / TOKENIZER_FILE)).token_to_id(text)
        if found is not None:
            return _checked(hf_dir, "tokenizer_config.json", found)
    raise CheckpointError(
        f"{hf_dir}: no {_FIELD} in generation_config.json or {CONFIG_FILE}, and no eos_token of the tokenizer, so no response would "
        "ever end; write the id that ends one into generation_config.json"
    )


def _checked(hf_dir: Path, name: str, found: Any) -> tuple[int, ...]:
    ids = found if isinstance(found, list) else [found]
    size = _object(hf_dir / CONFIG_FILE).get("vocab_size")
    if not ids or not all(type(token) is int and token >= 0 and (size is None or token < size) for token in ids):
        raise CheckpointError(f"{hf_dir / name}: {_FIELD} = {found!r} names no token of the vocabulary of {size}")
    return tuple(sorted(set(ids)))


def _object(path: Path) -> dict[str, Any]:
    """Fields of a JSON file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise CheckpointError(f"{path}: not valid JSON: {problem}") from problem
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, not an object")
    return values
