"""What a Hugging Face model directory consists of: file names, and which files hold the weights."""

import json
from pathlib import Path

from megatron_entropic.hf.headers import CheckpointError

CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

COMPANIONS = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer*",
    "tekken.json",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""What belongs to a model besides its weights, as patterns: settings, tokenizer, chat templates, and the terms it is given under."""


def companion_files(hf_dir: Path) -> tuple[str, ...]:
    """Relative names of the files of a model directory that match COMPANIONS."""
    found = (path for pattern in COMPANIONS for path in sorted(hf_dir.glob(pattern)) if path.is_file())
    return tuple(dict.fromkeys(str(path.relative_to(hf_dir)) for path in found))


def read_companions(hf_dir: Path) -> dict[str, bytes]:
    """All of a model directory but its weights, by relative name."""
    return {name: (hf_dir / name).read_bytes() for name in companion_files(hf_dir)}


def weight_files(hf_dir: Path) -> tuple[str, ...]:
    """Names of a model directory's safetensors files: the index's when there is one, else the single file.

    Raises CheckpointError when there is neither, the index cannot be read, or it names a file that is not there.
    """
    index = hf_dir / INDEX_FILE
    if not index.is_file():
        if not (hf_dir / SINGLE_FILE).is_file():
            raise CheckpointError(f"{hf_dir}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")
        return (SINGLE_FILE,)
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as problem:
        raise CheckpointError(f"{index}: not a safetensors index ({problem!r})") from problem
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: weight_map names {file!r}, which is not a plain file name")
    missing = [file for file in files if not (hf_dir / file).is_file()]
    if missing:
        raise CheckpointError("\n".join(f"{hf_dir / file}: missing, but {INDEX_FILE} names it" for file in missing))
    return tuple(files)
