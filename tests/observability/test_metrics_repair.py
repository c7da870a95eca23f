"""A metrics.jsonl that two processes wrote to becomes one history again, and the run can be resumed and reported."""

import json
from pathlib import Path

import pytest

from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.observability.metrics_repair import repair_metrics
from tests.command_line import megatron_entropic


def write(path: Path, *lines: tuple[int, str] | bytes) -> Path:
    """Lines of (step, whose); time/step_s differs between all of them."""
    rows = [
        line if isinstance(line, bytes) else json.dumps({"step": line[0], "by": line[1], "time/step_s": number}).encode() + b"\n"
        for number, line in enumerate(lines)
    ]
    path.write_bytes(b"".join(rows))
    return path


def history(path: Path) -> list[tuple[int, str]]:
    return [(fields["step"], fields["by"]) for fields in read_metrics(path)]


PREFIX = [(0, "p"), (1, "p")]
# B resumed after step 1 and removed A's lines 2 and 3; A continued with 4.
INTERLEAVED = [*PREFIX, (4, "A"), (2, "B"), (5, "A"), (3, "B"), (6, "A"), (4, "B"), (5, "B"), (7, "A"), (6, "B")]


def test_the_history_of_the_last_to_start_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", *INTERLEAVED)
    before = path.read_bytes()
    repair = repair_metrics(path, 6)
    assert history(path) == [*PREFIX, (2, "B"), (3, "B"), (4, "B"), (5, "B")]
    assert repair.backup is not None
    assert repair.backup.read_bytes() == before
    assert repair.ambiguous == (4, 5)
    assert "6 of 11 lines kept" in str(repair)
    assert repair_metrics(path, 6).backup is None, "a second time there is nothing to do"


def test_a_checkpoint_of_the_first_keeps_its_own_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", *INTERLEAVED)
    repair_metrics(path, 8)
    assert history(path) == [*PREFIX, (4, "A"), (5, "A"), (6, "A"), (7, "A")]


def test_equal_lines_are_not_ambiguous_and_torn_ones_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", (0, "p"), b'{"step": 1, "b\n', b"\0\0\0\n", (1, "p"), (1, "p"), (2, "p"), b'{"st')
    repair = repair_metrics(path, 3)
    assert history(path) == [(0, "p"), (1, "p"), (2, "p")]
    assert repair.ambiguous == ()


def test_without_a_checkpoint_the_longest_history_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", (0, "A"), (0, "B"), (1, "A"), (1, "B"))
    repair_metrics(path, 0)
    assert [step for step, _ in history(path)] == [0, 1]


def test_a_history_that_does_not_lead_to_the_checkpoint_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", (0, "A"), (0, "B"))
    with pytest.raises(ValueError, match="no history in it leads to step 4"):
        repair_metrics(path, 5)


def test_a_sound_file_is_left_alone_whatever_the_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", *PREFIX)
    assert str(repair_metrics(path, 9)) == "metrics.jsonl is sound: 2 steps"


def test_the_command_says_what_it_did_and_reports_say_how_to_call_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: r}\n")
    write(tmp_path / "metrics.jsonl", *INTERLEAVED)
    report = megatron_entropic("report", str(tmp_path))
    assert report.code == 2
    assert f"`megatron-entropic repair {tmp_path}`" in report.output
    outcome = megatron_entropic("repair", str(tmp_path))
    assert outcome.code == 0, outcome.output
    assert "lines kept; the file as it was" in outcome.output
    assert f"resume with: megatron-entropic train {tmp_path} --resume" in outcome.output
    read_metrics(tmp_path / "metrics.jsonl")
