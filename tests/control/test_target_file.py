"""RUN_DIR/target.json: written whole, told once, and a bad file is one warning."""

import json
import logging
import math
from pathlib import Path

import pytest

from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.control import Controller, make_controller
from megatron_entropic.control.target_file import NAME, AskedTarget, TargetError, TargetFile, read_target, write_target

LOGGER = "megatron_entropic.control.target_file"


@pytest.fixture
def controller() -> Controller:
    return make_controller(Config(control=ControlConfig(kind="entropic", target_entropy=0.85)))


def test_a_new_target_is_told_once_and_logged(tmp_path: Path, controller: Controller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    target_file = TargetFile(tmp_path, rank=0)
    assert target_file.poll(controller) is None
    write_target(tmp_path, 0.7)
    assert target_file.poll(controller) == 0.7
    assert target_file.poll(controller) is None
    write_target(tmp_path, None)
    cleared = target_file.poll(controller)
    assert cleared is not None
    assert math.isnan(cleared)
    assert target_file.poll(controller) is None
    path = tmp_path / NAME
    assert caplog.messages == [
        f"entropy target 0.85 -> 0.7, asked for in {path}",
        f"entropy target 0.85 -> the schedule's, asked for in {path}",
    ]
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_only_rank_zero_reads(tmp_path: Path, controller: Controller) -> None:
    write_target(tmp_path, 0.7)
    assert TargetFile(tmp_path, rank=1).poll(controller) is None
    assert TargetFile(tmp_path, rank=0).poll(controller) == 0.7


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON"),
        (b"0.7", "must be"),
        (b'{"target": 0.7}', "must be"),
        (b'{"target_entropy": 0.7, "tpyo": 1}', "must be"),
        (b'{"target_entropy": "0.7"}', "target_entropy=0.7 is not a finite number"),
        (b'{"target_entropy": true}', "target_entropy=True is not a finite number"),
        (b'{"target_entropy": NaN}', "is not a finite number"),
        (b'{"target_entropy": 1e999}', "is not a finite number"),
        (b'{"target_entropy": ' + b"9" * 400 + b"}", "is not a finite number"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 4000, "is not JSON"),
        (b" " * 5000, "is larger than"),
    ],
)
def test_a_bad_file_is_one_warning_and_a_good_one_works_again(
    tmp_path: Path, controller: Controller, caplog: pytest.LogCaptureFixture, content: bytes, problem: str
) -> None:
    path, target_file = tmp_path / NAME, TargetFile(tmp_path, rank=0)
    path.write_bytes(content)
    assert target_file.poll(controller) is None
    assert target_file.poll(controller) is None
    (message,) = caplog.messages
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert message.endswith("the entropy target stays as it is")
    write_target(tmp_path, 0.5)
    assert target_file.poll(controller) == 0.5


def test_a_file_that_cannot_be_read_is_one_warning(tmp_path: Path, controller: Controller, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).mkdir()
    target_file = TargetFile(tmp_path, rank=0)
    assert [target_file.poll(controller) for _ in range(3)] == [None] * 3
    (message,) = caplog.messages
    assert "cannot be read: Is a directory" in message


def test_a_controller_without_a_target_ignores_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_target(tmp_path, 0.7)
    target_file = TargetFile(tmp_path, rank=0)
    plain = make_controller(Config(control=ControlConfig(kind="none")))
    assert [target_file.poll(plain) for _ in range(2)] == [None] * 2
    (message,) = caplog.messages
    assert "no entropy target" in message


@pytest.mark.parametrize("target", [0.7, 0.0, -0.0, -1.5, 1e-300, 1 / 3, None])
def test_what_is_written_reads_back(tmp_path: Path, target: float | None) -> None:
    path = write_target(tmp_path, target)
    asked = read_target(path)
    assert asked is not None
    assert asked.target_entropy == target
    assert asked.asked_at.startswith("20")
    assert json.loads(path.read_text()).keys() == {"target_entropy", "asked_at"}


def test_edges_of_reading_and_writing(tmp_path: Path) -> None:
    path = tmp_path / NAME
    assert read_target(path) is None
    for bad in (math.nan, math.inf):
        with pytest.raises(TargetError, match="must be a finite number of nats"):
            write_target(tmp_path, bad)
    assert not path.exists()
    path.write_text('{"target_entropy": 1}')  # by hand: a whole number, without a time
    assert read_target(path) == AskedTarget(1.0, "")
