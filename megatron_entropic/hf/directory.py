"""Contents of a Hugging Face model directory: file names, and which files hold the weights."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

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
"""Files of a model besides its weights, as patterns: settings, tokenizer, chat templates, and the terms it is given under."""

_MADE_BY = {"SmolLM2-135M-Instruct": "python -m recipes.smollm2"}
"""Models that a command of this project makes, by their folders' names; it takes the folder."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""A model's name on the Hugging Face hub: owner/model."""


def download_hint(hf_dir: Path) -> str:
    """Hint on how to get a missing model, when its name or path says where from; else nothing.

    The name of a model that a command here makes, a name on the hub, or a folder of models named as there.
    """
    if command := _MADE_BY.get(hf_dir.name):
        return f"; `{command} {quote(str(hf_dir))}` makes it"
    if hf_dir.exists() or not _HUB_ID.fullmatch(str(hf_dir)):
        return ""
    is_id = hf_dir.parent.name != "models" and not hf_dir.parent.is_dir()
    name, folder = (str(hf_dir), f"models/{hf_dir.name}") if is_id else (f"OWNER/{hf_dir.name}", str(hf_dir))
    again = f", then model.hf_path={folder}" if is_id else ""
    return f"; models are read from folders, never from the network: hf download {name} --local-dir {folder}{again}"


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
"""Buffers that early Llama checkpoints saved with the weights; transformers and vLLM compute it from config.json."""


def companion_files(hf_dir: Path) -> tuple[str, ...]:
    """Relative names of the files of a model directory that match COMPANIONS."""
    found = (path for pattern in COMPANIONS for path in sorted(hf_dir.glob(pattern)) if path.is_file())
    return tuple(dict.fromkeys(str(path.relative_to(hf_dir)) for path in found))


def read_companions(hf_dir: Path) -> dict[str, bytes]:
    """All of a model directory but its weights, by relative name."""
    return {name: (hf_dir / name).read_bytes() for name in companion_files(hf_dir)}


def redundant_tensors(names: Iterable[str], *, tied: bool) -> set[str]:
    """Those of a file's tensors that say again what others, or config.json, say: the head of `tied` embeddings, rotary buffers."""
    return {name for name in names if _BUFFER.fullmatch(name) or (tied and name == HEAD)}


def says_tied(hf_dir: Path) -> bool:
    """Whether config.json, if there is one, says that embedding and head are one."""
    path = hf_dir / CONFIG_FILE
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("tie_word_embeddings") is True


def two_models(hf_dir: Path) -> str | None:
    """The defect of a directory whose index does not name the single file beside it; None without one."""
    if not ((hf_dir / INDEX_FILE).is_file() and (hf_dir / SINGLE_FILE).is_file()) or SINGLE_FILE in (files := _indexed(hf_dir)):
        return None
    missing = sum(not (hf_dir / file).is_file() for file in files)
    those = f", {missing} of them missing" if missing else ""
    return (
        f"{hf_dir}: {SINGLE_FILE} and {INDEX_FILE} ({len(files)} other file(s){those}) are two models: transformers reads the first, "
        "vLLM the second; delete the one that is left from an earlier save"
    )


def weight_files(hf_dir: Path) -> tuple[str, ...]:
    """Names of a model directory's safetensors files: the index's when there is one, else the single file.

    Raises CheckpointError when there is neither, both contradict, the index cannot be read, or it names a file that is not there.
    """
    if not (hf_dir / INDEX_FILE).is_file():
        if not (hf_dir / SINGLE_FILE).is_file():
            raise CheckpointError(f"{hf_dir}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")
        return (SINGLE_FILE,)
    if contradiction := two_models(hf_dir):
        raise CheckpointError(contradiction)
    files = _indexed(hf_dir)
    missing = [file for file in files if not (hf_dir / file).is_file()]
    if missing:
        raise CheckpointError("\n".join(f"{hf_dir / file}: missing, but {INDEX_FILE} names it" for file in missing))
    return files


def _indexed(hf_dir: Path) -> tuple[str, ...]:
    """The files that the index names. Raises CheckpointError when it cannot be read."""
    index = hf_dir / INDEX_FILE
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as problem:
        raise CheckpointError(f"{index}: not a safetensors index ({problem!r})") from problem
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: weight_map names {file!r}, which is not a plain file name")
    return tuple(files)
