"""Megatron-LM's save folders: the latest iteration, or a line that says which there are."""

import shutil
from pathlib import Path

import pytest

from megatron_entropic.checkpoint_files.kind import locate
from megatron_entropic.hf.headers import CheckpointError
from tests.conversion.conversions import imported
from tests.tiny_models import TINY_DECOMPOSE


@pytest.fixture
def saves(tmp_path: Path) -> Path:
    weights = imported(TINY_DECOMPOSE, tmp_path / "imported") / "policy"
    for name in ("iter_0000050", "iter_0000100", "release"):
        shutil.copytree(weights, tmp_path / "saves" / name)
    return tmp_path / "saves"


def test_a_save_folder_means_what_its_tracker_names(saves: Path) -> None:
    for word, name in (("100\n", "iter_0000100"), ("50", "iter_0000050"), ("release\n", "release")):
        (saves / "latest_checkpointed_iteration.txt").write_text(word)
        assert locate(saves).weights == saves / name


@pytest.mark.parametrize("word", ["150", "", "../imported", "iter", "\x00"])
def test_a_tracker_that_names_nothing_is_refused_with_what_is_there(saves: Path, word: str) -> None:
    (saves / "latest_checkpointed_iteration.txt").write_text(word)
    with pytest.raises(CheckpointError, match=r"iteration\.txt: says .* there are: iter_0000050, iter_0000100, release"):
        locate(saves)


def test_without_a_tracker_the_iterations_are_named(saves: Path) -> None:
    with pytest.raises(CheckpointError, match=r"save folder without latest_checkpointed_iteration\.txt; .*iter_0000050, iter_0000100"):
        locate(saves)
