"""Checks a Hugging Face model directory without loading a weight, and reports everything that is wrong with it at once."""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.files import CONFIG_FILE, INDEX_FILE, TOKENIZER_FILE, weight_files
from megatron_entropic.hf.headers import CheckpointError, TensorHeader, read_header
from megatron_entropic.hf.mapping import hf_shapes

_HEAD = "lm_head.weight"


def check_hf_dir(hf_dir: Path, arch: Architecture) -> None:
    """Checks that the directory holds exactly the tensors of `arch`, in whole files, and a tokenizer that fits it.

    Reads safetensors headers, never the data. Raises one CheckpointError with a line for each problem, which names the file
    and the tensor: missing or truncated files, missing, unexpected or misshapen tensors, an output head that contradicts
    tie_word_embeddings, a tokenizer with ids beyond the embedding.
    """
    hf_dir = Path(hf_dir)
    if not hf_dir.is_dir():
        raise CheckpointError(f"{hf_dir}: no such directory")
    problems = [*_config_problems(hf_dir), *_tokenizer_problems(hf_dir, arch), *_weight_problems(hf_dir, arch)]
    if problems:
        raise CheckpointError("\n".join([f"{hf_dir}: {len(problems)} problem(s) in this model directory:", *problems]))


def _config_problems(hf_dir: Path) -> Iterator[str]:
    if not (hf_dir / CONFIG_FILE).is_file():
        yield f"{hf_dir / CONFIG_FILE}: missing"


def _tokenizer_problems(hf_dir: Path, arch: Architecture) -> Iterator[str]:
    path = hf_dir / TOKENIZER_FILE
    if not path.is_file():
        yield f"{path}: missing; save a fast tokenizer there"
        return
    try:
        vocabulary = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as problem:  # noqa: BLE001 - the tokenizers library raises plain Exception
        yield f"{path}: cannot be read as a tokenizer: {problem}"
        return
    token, largest = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    if largest >= arch.vocab_size:
        yield (
            f"{path}: a tokenizer that does not fit the embedding: token {token!r} has id {largest}, "
            f"the embedding has {arch.vocab_size} rows"
        )


def _weight_problems(hf_dir: Path, arch: Architecture) -> Iterator[str]:
    try:
        files = weight_files(hf_dir)
    except CheckpointError as problem:
        yield str(problem)
        files = tuple(path.name for path in sorted(hf_dir.glob("*.safetensors")))
    found: dict[str, tuple[str, TensorHeader]] = {}
    broken = False
    for file in files:
        try:
            header = read_header(hf_dir / file)
        except CheckpointError as problem:
            yield str(problem)
            broken = True
            continue
        for name in header.keys() & found.keys():
            yield f"{hf_dir / file}: tensor {name} is also in {found[name][0]}"
        found.update((name, (file, tensor)) for name, tensor in header.items())
    if found or not broken:
        yield from _tensor_problems(hf_dir, arch, found)
        yield from _index_problems(hf_dir, found)


def _tensor_problems(hf_dir: Path, arch: Architecture, found: dict[str, tuple[str, TensorHeader]]) -> Iterator[str]:
    expected = hf_shapes(arch)
    for name, shape in expected.items():
        if name not in found:
            hint = "; config.json says tie_word_embeddings=false, so it must be there" if name == _HEAD else ""
            yield f"{hf_dir}: tensor {name} {list(shape)} is missing{hint}"
        elif found[name][1].shape != shape:
            file, tensor = found[name]
            yield f"{hf_dir / file}: tensor {name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}"
    for name, (file, _) in found.items():
        if name == _HEAD and arch.tied_embeddings:
            yield f"{hf_dir / file}: tensor {name} is there although config.json says tie_word_embeddings=true"
        elif name not in expected:
            yield f"{hf_dir / file}: unexpected tensor {name}: {arch.architecture} with these settings has none of that name"


def _index_problems(hf_dir: Path, found: dict[str, tuple[str, TensorHeader]]) -> Iterator[str]:
    index = hf_dir / INDEX_FILE
    if not index.is_file():
        return
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return  # weight_files has reported it
    for name, file in weight_map:
        if name in found and found[name][0] != file:
            yield f"{index}: says tensor {name} is in {file}, it is in {found[name][0]}"
