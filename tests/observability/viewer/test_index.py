"""The index and its search: finds what is there, follows what changes, survives damage and hostile text."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from megatron_entropic.observability.viewer.index import Index, index_path
from megatron_entropic.observability.viewer.search import ORDERS, Filters, matching_samples, other_steps, search
from megatron_entropic.rollout.recording import RolloutWriter, file_name
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.tasks.task import Problem
from tests.observability.synthetic_runs import synthetic_rollouts

HOSTILE = "<script>alert(1)</script> \x00\x1b[2J‮ \ud800 'quote\" * NEAR( AND"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three steps of two prompts with four samples each."""
    writer = RolloutWriter(tmp_path / "run" / "rollouts")
    for step in range(3):
        writer.write(step, *synthetic_rollouts(step, f"the sum of step {step} is right"))
    return writer.folder


def found(index: Index, **filters: object) -> list[tuple[int, int]]:
    answer = search(index, Filters(**filters))  # type: ignore[arg-type]
    return [(result["step"], result["prompt_index"]) for result in answer["results"]]


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> Index:
    index = Index(folder, tmp_path / "index.sqlite")
    index.refresh()
    return index


def test_finds_prompts_responses_and_ranges(index: Index) -> None:
    everything = [(step, 2 * step + number) for step in range(3) for number in range(2)]
    assert found(index) == everything
    assert found(index, text="rite 3 as", where="prompt") == [(1, 3)]  # any part of a prompt
    assert found(index, text="3 ", where="prompt") == [(1, 3)]  # too short for a trigram
    assert found(index, text="STEP 2", where="response") == [(2, 4), (2, 5)]
    assert found(index, text='"sum of step 1"') == [(1, 2), (1, 3)]
    assert found(index, text='"step sum"') == []
    assert found(index, text="rig*", step_from=2, step_to=2) == [(1, 2), (1, 3)]
    assert found(index, prompt=5) == [(2, 5)]
    assert found(index, reward_from=2) == found(index, length_from=5) == []
    assert matching_samples(index, Filters(reward_from=1), 0, 0) == [1, 3]
    answer = search(index, Filters(reward_from=1))
    assert (answer["groups"], answer["rollouts"], answer["pages"]) == (6, 12, 1)
    assert all(len(search(index, Filters(), order)["results"]) == 6 for order in ORDERS)


def test_bad_filters_are_named(index: Index) -> None:
    with pytest.raises(ValueError, match="step_from=many: not a number"):
        Filters.read({"step_from": "many"})
    with pytest.raises(ValueError, match="where=nowhere: one of"):
        Filters.read({"where": "nowhere"})
    with pytest.raises(ValueError, match="order=up: one of"):
        search(index, Filters(), "up")
    for text in ('"', "*", "''", "(", "NEAR(", "a OR", "-", "^", "{x}:", "\0", "\ud800", "😀", "%_"):
        search(index, Filters(text=text))  # no text is a query of its own


def test_hostile_text_and_empty_responses_are_stored_as_they_are(tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path / "rollouts")
    empty = np.zeros(0, dtype=np.int32)
    rollouts = [
        Rollout(0, 0, empty + 0, empty, empty.astype(np.float32), HOSTILE, "stop", 0, 0, "<b>"),
        Rollout(0, 1, empty + 0, empty, empty.astype(np.float32), "", "stop", 0, 0, "<b>"),
    ]
    writer.write(0, rollouts, {0: Problem(HOSTILE, {})}, [0.0, 1.0])
    index = Index(tmp_path / "rollouts", tmp_path / "index.sqlite")
    index.refresh()
    assert found(index, text="<script>alert(1)", where="prompt") == [(0, 0)]
    assert found(index, text="alert", where="response") == [(0, 0)]
    shown = search(index, Filters())["results"][0]["prompt"]
    assert "<script>" in shown, "escaping HTML is the page's: it makes text nodes"
    assert "\x1b" not in shown
    assert "‮" not in shown


def test_follows_a_run_that_grows_is_resumed_and_overwritten(folder: Path, index: Index) -> None:
    assert index.refresh() is False
    RolloutWriter(folder).write(3, *synthetic_rollouts(3, "new"))
    (folder / f".{file_name(4)}.tmp").write_bytes(b"half")
    assert index.refresh() is True
    assert index.progress().indexed == 4
    RolloutWriter(folder).write(1, *synthetic_rollouts(1, "other words"))
    index.refresh()
    assert found(index, text='"step 1"') == []
    assert found(index, text="other") == [(1, 2), (1, 3)]
    assert search(index, Filters())["rollouts"] == 32
    for path in folder.glob("step-*"):
        path.unlink()
    index.refresh()
    assert (index.progress().indexed, found(index)) == (0, [])


def test_unreadable_steps_are_named_and_read_once_they_are_whole(folder: Path, index: Index) -> None:
    path = folder / file_name(1)
    whole = path.read_bytes()
    for content in (whole[:-20], b"", os.urandom(500)):
        path.write_bytes(content)
        index.refresh()
        assert list(index.progress().errors) == [1]
        assert str(path) in index.progress().errors[1]
        assert found(index) == [(0, 0), (0, 1), (2, 4), (2, 5)]
    path.write_bytes(whole)
    index.refresh()
    assert index.progress().errors == {}
    assert len(found(index)) == 6


def test_a_damaged_or_older_index_is_made_anew(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"no database at all" * 100)
    index = Index(folder, path)
    index.refresh()
    assert len(found(index)) == 6
    with path.open("r+b") as file:  # damaged while it is used
        file.seek(100)
        file.write(os.urandom(4000))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    again = Index(folder, path)
    again.refresh()
    assert len(found(again)) == 6


def test_the_index_lies_in_the_users_cache_and_a_read_only_run_will_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = sorted(path.name for path in folder.parent.rglob("*"))
    Index(folder).refresh()
    assert index_path(folder).is_relative_to(tmp_path / "cache")
    assert index_path(folder).is_file()
    assert sorted(path.name for path in folder.parent.rglob("*")) == before
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below it
    assert not index_path(folder).is_relative_to(tmp_path / "file")


def test_a_prompt_that_is_drawn_again_is_found_with_all_its_places(folder: Path, index: Index) -> None:
    rollouts, problems, rewards = synthetic_rollouts(9)
    problems = {number: Problem("Write 0 as a sum:", json.loads("{}")) for number in problems}
    RolloutWriter(folder).write(9, rollouts, problems, rewards)
    index.refresh()
    same, places = other_steps(index, 0, 0)
    assert places == [(0, 0), (9, 18), (9, 19)]
    assert found(index, same=same) == places
    assert other_steps(index, 77, 0) == (None, [])
