"""The smoke test's runner: parts that pass, fail, hang, die or lie; its table, its JSON, and what it leaves behind."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_entropic.doctor.smoke.command import smoke
from megatron_entropic.doctor.smoke.table import PARTS, SmokePart, UnknownPartError, chosen_parts
from tests.command_line import MARK, ROOT, marked_processes, megatron_entropic


def start(*arguments: str, mark: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.doctor.smoke_parts", *arguments]
    environ = {**os.environ, MARK: mark or uuid.uuid4().hex}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class Ended:
    """A whole run of all parts of smoke_parts.py."""

    def __init__(self, folder: Path) -> None:
        mark = uuid.uuid4().hex
        self.report = folder / "new" / "found.json"
        process = start(str(self.report), mark=mark)
        self.output, _ = process.communicate(timeout=200)
        self.code = process.returncode
        self.left = [process.cmdline() for process in marked_processes(mark)]
        self.page: dict[str, Any] = json.loads(self.report.read_text())
        self.parts: dict[str, dict[str, Any]] = {part["name"]: part for part in self.page["parts"]}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return Ended(tmp_path_factory.mktemp("smoke"))


def test_every_part_runs_in_order_whatever_becomes_of_the_others(ended: Ended) -> None:
    results = {name: part["result"] for name, part in ended.parts.items()}
    assert list(results.items()) == [
        ("good", "passed"),
        ("garbage", "passed"),
        ("raises", "failed"),
        ("dies", "failed"),
        ("killed", "failed"),
        ("hangs", "failed"),
        ("leaves", "failed"),
        ("lies", "failed"),
        ("wrong", "failed"),
        ("nothing", "not tried"),
        ("lacking", "not tried"),
    ]
    assert ended.code == 1
    assert ended.page["failed"] == ["raises", "dies", "killed", "hangs", "leaves", "lies", "wrong"]
    assert "FAILED: raises, dies, killed, hangs, leaves, lies, wrong\n" in ended.output


def test_nothing_of_any_part_is_left(ended: Ended) -> None:
    assert ended.left == []


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("raises", "KeyError: 'a line of it"),
        ("dies", "ended with exit code 3"),
        ("killed", "killed by SIGKILL"),
        ("hangs", "not done after 2 s, its time limit"),
        ("leaves", "left processes running, which were ended: python"),
        ("lies", "its findings cannot be read"),
        ("wrong", "an error: 2, at most 1 is allowed"),
    ],
)
def test_a_failure_says_what_happened(ended: Ended, part: str, says: str) -> None:
    assert any(says in failure for failure in ended.parts[part]["failures"]), ended.parts[part]["failures"]
    assert f"FAILED: {says}" in ended.output


def test_a_failing_part_keeps_what_it_found_before_and_goes_on_after_a_check(ended: Ended) -> None:
    assert ended.parts["raises"]["found"] == {"before": {"value": 1.0}}
    assert ended.parts["wrong"]["found"] == {"it went on": {"value": 1.0}}
    assert len(ended.parts["wrong"]["failures"]) == 2


def test_a_failing_part_shows_its_last_lines_and_its_log(ended: Ended) -> None:
    log = ended.report.with_suffix(".logs") / "dies.log"
    assert log.read_text() == "last words\n"
    assert f"    | last words\n    the whole log: {log}" in ended.output
    assert "in raises" in ended.output  # of the traceback


def test_a_time_limit_is_kept(ended: Ended) -> None:
    assert 2 <= ended.parts["hangs"]["seconds"] < 30


def test_what_is_not_tried_has_a_reason(ended: Ended) -> None:
    assert ended.parts["nothing"]["untried"] == {"everything": "no reason"}
    assert ended.parts["lacking"]["untried"] == {"everything": "no_such_module.at_all cannot be imported: not installed"}
    assert ended.parts["good"]["untried"] == {"flying": "no wings"}
    assert "not tried: flying: no wings" in ended.output


def test_progress_and_numbers_are_shown(ended: Ended) -> None:
    assert "[1/11] good: good (at most 60 s)" in ended.output
    assert "s  being good\n" in ended.output
    assert "a number: metres 1.5, of what nothing, not a number nan" in ended.output
    assert ended.parts["good"]["found"] == {"a number": {"metres": 1.5, "of what": "nothing", "not a number": "nan"}}
    assert ended.page["versions"]["torch"]


def test_the_report_is_the_only_file_of_its_folder_beside_the_logs(ended: Ended) -> None:
    assert sorted(path.name for path in ended.report.parent.iterdir()) == ["found.json", "found.logs"]


def test_parts_that_pass_or_cannot_be_tried_are_a_success(tmp_path: Path) -> None:
    process = start(str(tmp_path / "found.json"), "nothing,good")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [part["name"] for part in json.loads((tmp_path / "found.json").read_text())["parts"]] == [
        "good",
        "nothing",
    ]  # the table's order
    assert "every part that could be tried passed" in output


def running(mark: str, word: str) -> list[psutil.Process]:
    """Marked processes whose command line has that word; one may end while it is looked at."""
    found = []
    for one in marked_processes(mark):
        with contextlib.suppress(psutil.Error):
            found += [one] if word in one.cmdline() else []
    return found


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process_and_no_report(tmp_path: Path, signum: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    process = start(str(tmp_path / "found.json"), "good,hangs", mark=mark)
    while not (scratch := [one.environ()["TMPDIR"] for one in running(mark, "tests.doctor.smoke_parts:hangs")]):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signum)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while (left := running(mark, "doctor.smoke.child")) and time.monotonic() < deadline:
        time.sleep(0.05)
    everything = marked_processes(mark)
    for one in everything:
        one.kill()
    for folder in scratch:
        shutil.rmtree(folder, ignore_errors=True)  # a killed runner cannot
    assert not left
    assert signum is signal.SIGKILL or not everything
    assert not (tmp_path / "found.json").exists()


# The command line


def test_unknown_parts_are_named_with_the_known_ones() -> None:
    outcome = megatron_entropic("doctor", "--gpu-smoke", "--only", "kernel,versions")
    assert outcome.code == 2
    assert "no part is called kernel; the parts are versions, kernels, layers" in outcome.output
    with pytest.raises(UnknownPartError, match="''"):
        chosen_parts([""])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--only", "kernels"), "--only and --json go with --gpu-smoke"),
        (("--json", "x.json"), "--only and --json go with --gpu-smoke"),
        (("quickstart", "--gpu-smoke"), "takes no recipe, and quickstart was given"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], says: str) -> None:
    outcome = megatron_entropic("doctor", *arguments)
    assert outcome.code == 2
    assert says in outcome.output


def test_a_report_that_cannot_be_written_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = megatron_entropic("doctor", "--gpu-smoke", "--only", "versions", "--json", str(tmp_path / "file" / "found.json"))
    assert outcome.code == 2
    assert "[1/1]" not in outcome.output


@pytest.mark.parametrize("name", ["folder", "found.logs", ".."])
def test_a_report_whose_name_is_no_files_is_an_error_before_anything_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    outcome = megatron_entropic("doctor", "--gpu-smoke", "--only", "versions", "--json", str(tmp_path / name))
    assert outcome.code == 2
    assert f"error: --json={tmp_path / name}: the name of a file is needed" in outcome.output
    assert "[1/1]" not in outcome.output


def test_a_report_for_which_no_room_is_left_costs_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("megatron_entropic.doctor.smoke.command.write_json", full)
    with pytest.raises(OSError, match="No space"):
        smoke(["versions"], tmp_path / "found.json")
    assert "every part that could be tried passed" in capsys.readouterr().out


def test_help_lists_the_parts() -> None:
    outcome = megatron_entropic("doctor", "--help")
    for part in PARTS:
        assert f"  {part.name}" in outcome.output
        assert part.shows in outcome.output


def test_the_default_report_is_in_the_current_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megatron_entropic.cli", "doctor", "--gpu-smoke", "--only", "versions"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "gpu_smoke.json").read_text())["parts"][0]["found"]
    assert found["packages"]["torch"].startswith("2.")


def test_every_part_has_a_limit_and_together_they_stay_within_half_an_hour() -> None:
    assert all(0 < part.limit_s <= 420 for part in PARTS)
    assert sum(part.limit_s for part in PARTS) <= 1800
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert isinstance(PARTS[0], SmokePart)
