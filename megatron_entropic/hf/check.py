"""Checks a Hugging Face model directory without loading a weight, and reports everything that is wrong with it at once."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.directory import (
    CONFIG_FILE,
    EMBEDDING,
    HEAD,
    INDEX_FILE,
    TOKENIZER_FILE,
    redundant_tensors,
    says_tied,
    two_models,
    weight_files,
)
from megatron_entropic.hf.headers import DTYPE_NAMES, CheckpointError, TensorHeader, read_header, same_values
from megatron_entropic.hf.tables import hf_shapes


@dataclass(frozen=True)
class _Found:
    """A tensor that is really there: in which file, and what its header says."""

    file: str
    header: TensorHeader


def check_hf_dir(hf_dir: Path, arch: Architecture) -> None:
    """Checks that the directory holds exactly the tensors of `arch`, in whole files, and a tokenizer that fits it.

    Reads safetensors headers, and of the data only a head that tied embeddings need not have. Raises one CheckpointError with a
    line for each problem, which names the file and the tensor: missing, truncated or foreign files, missing, unexpected or
    misshapen tensors, an output head that contradicts tie_word_embeddings, a tokenizer with ids beyond the embedding.
    """
    raise_problems(hf_dir, hf_problems(hf_dir, arch))


def check_companions(hf_dir: Path, arch: Architecture) -> None:
    """As `check_hf_dir`, of a directory without weights: the hf/ of a distributed checkpoint."""
    raise_problems(hf_dir, [*_config_problems(hf_dir), *_tokenizer_problems(hf_dir, arch)])


def raise_problems(hf_dir: Path, problems: Sequence[str]) -> None:
    """Raises one CheckpointError of all `problems` with a model directory, if there are any."""
    if problems:
        raise CheckpointError("\n".join([f"{hf_dir}: {len(problems)} problem(s) in this model directory:", *problems]))


def hf_problems(hf_dir: Path, arch: Architecture) -> list[str]:
    """A line for each problem that `check_hf_dir` would raise."""
    if not hf_dir.is_dir():
        raise CheckpointError(f"{hf_dir}: no such directory")
    return [*_config_problems(hf_dir), *_tokenizer_problems(hf_dir, arch), *_weight_problems(hf_dir, arch)]


def dtype_problems(hf_dir: Path) -> Iterator[str]:
    """A line for every type that tensors have and config.json does not say, with how many and one of them."""
    config = json.loads((hf_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    said = config.get("dtype") or config.get("torch_dtype")
    names: dict[str, list[str]] = {}
    with suppress(CheckpointError):  # broken files are a problem of their own
        for file in weight_files(hf_dir):
            tensors = read_header(hf_dir / file)
            for name in sorted(tensors.keys() - redundant_tensors(tensors, tied=says_tied(hf_dir))):
                names.setdefault(DTYPE_NAMES[tensors[name].dtype], []).append(name)
    for dtype, of_dtype in names.items():
        if dtype != said and (said is not None or len(names) > 1):
            yield (
                f"{hf_dir / CONFIG_FILE}: says dtype {said}, but {len(of_dtype)} tensor(s) are {dtype}, among them {min(of_dtype)}; "
                "say in which type they are to be written (--dtype)"
            )


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
    weight_map = _weight_map(hf_dir)
    try:
        files = weight_files(hf_dir)
        foreign = sorted(path.name for path in hf_dir.glob("*.safetensors") if path.name not in files)
        yield from (f"{hf_dir / file}: not of this model's weights, but vLLM would load it with them; move it away" for file in foreign)
    except CheckpointError as problem:
        yield str(problem)
        if two_models(hf_dir):
            return
        files = tuple(sorted(path.name for path in hf_dir.glob("*.safetensors")))
        if not files:
            return
    found: dict[str, _Found] = {}
    read: set[str] = set()
    for file in files:
        try:
            header = read_header(hf_dir / file)
        except CheckpointError as problem:
            yield str(problem)
            continue
        read.add(file)
        for name in header.keys() & found.keys():
            yield f"{hf_dir / file}: tensor {name} is also in {found[name].file}"
        found.update((name, _Found(file, tensor)) for name, tensor in header.items())
    # A tensor that should be in a file just reported as broken or missing is not a second problem.
    lost = {name for name, file in weight_map.items() if file not in read}
    if read:
        yield from _tensor_problems(hf_dir, arch, found, lost)
    for name, file in weight_map.items():
        if name in found and found[name].file != file:
            yield f"{hf_dir / INDEX_FILE}: says tensor {name} is in {file}, it is in {found[name].file}"


def _tensor_problems(hf_dir: Path, arch: Architecture, found: dict[str, _Found], lost: set[str]) -> Iterator[str]:
    expected = hf_shapes(arch)
    for name, shape in expected.items():
        if name in lost:
            continue
        if name not in found:
            hint = "; config.json says tie_word_embeddings=false, so it must be there" if name == HEAD else ""
            yield f"{hf_dir}: tensor {name} {list(shape)} is missing{hint}"
        elif found[name].header.shape != shape:
            wrong = list(found[name].header.shape)
            yield f"{hf_dir / found[name].file}: tensor {name} has shape {wrong}, config.json asks for {list(shape)}"
    redundant = redundant_tensors(found, tied=arch.tied_embeddings)
    for name in sorted(found.keys() - expected.keys() - redundant):
        file = hf_dir / found[name].file
        yield f"{file}: unexpected tensor {name}: {arch.architecture} with these settings has none of that name"
    if HEAD in redundant and EMBEDDING in found:
        head, embedding = ((hf_dir / found[name].file, found[name].header) for name in (HEAD, EMBEDDING))
        if not same_values(head, embedding):
            yield f"{head[0]}: tensor {HEAD} is not {EMBEDDING} although config.json says tie_word_embeddings=true"


def _weight_map(hf_dir: Path) -> dict[str, str]:
    """The index's tensor -> file map; empty when there is no index or it cannot be read, which weight_files reports."""
    index = hf_dir / INDEX_FILE
    if not index.is_file():
        return {}
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return {}
