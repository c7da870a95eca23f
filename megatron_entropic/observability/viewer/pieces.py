"""The text of each token of a response, by the run's tokenizer: pieces that make up the response when they are put together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_entropic.checkpoint_files.kind import model_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TORN = "�"
_LONGEST_CHARACTER = 8
"""Tokens that may make up one character; text that stays torn after so many is shown as it is."""


def tokenizer_of(run_dir: Path, config: Mapping[str, Mapping[str, Any]]) -> "tuple[Tokenizer | None, str | None]":
    """The tokenizer of a run, or why there is none: of its final model, its checkpoints, or the model that it started from."""
    folders = [run_dir / "hf", *sorted(run_dir.glob("checkpoints/step-*/hf"), reverse=True)]
    if path := config.get("model", {}).get("hf_path"):
        given = Path(str(path)).expanduser()
        folders.append(model_folder(given).hf_dir if given.is_dir() else given)
    files = [folder / "tokenizer.json" for folder in folders]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None, f"tokens are shown by their ids: there is no {' or '.join(map(str, [files[0], files[-1]]))}"
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file)), None
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower for a malformed file
        return None, f"tokens are shown by their ids: {file} cannot be read ({error})"


def pieces_of(tokenizer: "Tokenizer | None", token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds; empty for one that begins a character which later ones complete."""
    if tokenizer is None:
        return [f"⟨{token}⟩" for token in token_ids]
    pieces, start, done = [], 0, 0  # decoded from `start` on, because the first token of a text may lose its space
    for end in range(1, len(token_ids) + 1):
        before = tokenizer.decode(token_ids[start:done], skip_special_tokens=False)
        now = tokenizer.decode(token_ids[start:end], skip_special_tokens=False)
        torn = now.endswith(_TORN) and end - done < _LONGEST_CHARACTER and end < len(token_ids)
        if torn or len(now) <= len(before):
            pieces.append("")
        else:
            pieces.append(now[len(before) :])
            start, done = done, end
        if tokenizer.id_to_token(token_ids[end - 1]) is None:
            pieces[-1] = f"⟨{token_ids[end - 1]}⟩"
    return pieces
