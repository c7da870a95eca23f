"""metrics.jsonl: exact numbers, whole lines, clear errors, truncation for resuming."""

import json
import math
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.control import Measurement, make_controller
from megatron_entropic.observability import METRIC_FIELDS, MetricsWriter, read_metrics, truncate_after
from tests.observability.synthetic_runs import synthetic_metrics


def _write(path: Path, steps: int) -> list[dict[str, Any]]:
    lines = synthetic_metrics(steps)
    writer = MetricsWriter(path)
    for step, metrics in enumerate(lines):
        writer.log(step, metrics)
    writer.close()
    return lines


def test_numbers_read_back_bit_for_bit(tmp_path: Path) -> None:
    rng = random.Random(0)
    values = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(2000)]
    values = [v for v in values if math.isfinite(v)] + [0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308]
    metrics = synthetic_metrics(1)[0] | {f"x/{i}": v for i, v in enumerate(values)}
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.log(0, metrics)
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert [struct.pack("<d", line[f"x/{i}"]) for i in range(len(values))] == [struct.pack("<d", v) for v in values]
    assert line["step"] == 0
    assert line["policy/clamped_entropy"] is None


def test_non_finite_numbers_are_strict_json_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsWriter(path).log(0, synthetic_metrics(1)[0] | {"grad_norm": math.nan, "loss/total": -math.inf, "loss/policy": math.inf})

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    (line,) = read_metrics(path)
    assert math.isnan(line["grad_norm"])
    assert (line["loss/total"], line["loss/policy"]) == (-math.inf, math.inf)


def test_missing_documented_fields_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = synthetic_metrics(1)[0]
    del metrics["control/alpha"], metrics["time/sync_s"]
    with pytest.raises(ValueError, match=r"step 0: missing metrics: control/alpha, time/sync_s"):
        MetricsWriter(path).log(0, metrics)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("field", "value"), [("policy/entropy", None), ("reward/mean", "0.5"), ("my/flag", True), ("my/list", [1.0])])
def test_values_that_are_not_numbers_are_named(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"metric {field} is"):
        MetricsWriter(tmp_path / "metrics.jsonl").log(0, synthetic_metrics(1)[0] | {field: value})


def test_every_documented_field_has_unit_and_description() -> None:
    assert all(field.unit and field.description for field in METRIC_FIELDS.values())
    needed = {name for name, field in METRIC_FIELDS.items() if not field.optional}
    assert {name for name in needed if name.startswith("control/")} == {
        f"control/{name}" for name in ("active_fraction", "actuated_fraction", "authority", "pressure", "bonus_authority")
    }  # measured in every run; all else depends on the kind of control
    assert needed > {"step", "policy/entropy", "reward/mean", "grad_norm", "time/step_s"}


def test_everything_a_controller_reports_is_documented() -> None:
    """After a measurement with authority: then all of it is known."""
    steering = make_controller(Config(control=ControlConfig(kind="entropic")))
    steering.step(Measurement(0.5, version=0, executed=1, active_fraction=0.4, authority=0.1, bonus_authority=0.2))
    reported = {f"control/{name}" for name in steering.report()}
    assert len(reported) > 15
    assert reported <= {name for name, field in METRIC_FIELDS.items() if field.optional}


def test_a_step_cannot_be_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = _write(path, 3)[0]
    with pytest.raises(ValueError, match="step 2 does not follow step 2"):
        MetricsWriter(path).log(2, metrics)
    with pytest.raises(ValueError, match="field step is 9"):
        MetricsWriter(path).log(3, metrics | {"step": 9})


def test_only_a_torn_last_line_is_dropped_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match=r"metrics\.jsonl, line 3: torn last line"):
        assert [line["step"] for line in read_metrics(path)] == [0, 1]
    with pytest.raises(ValueError, match="line 3: torn line"):
        MetricsWriter(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"step": 1, "x"\n', "line 2: not JSON"),
        (b"[1]\n", "line 2: not a JSON object with an integer field step"),
        (b'{"x": 1}\n', "line 2: not a JSON object with an integer field step"),
        (b'{"step": 0}\n', "line 2: step 0 does not follow step 0"),
        (b"\n", "line 2: not JSON"),
    ],
)
def test_any_other_bad_line_is_an_error_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'{"step": 2}\n')
    with pytest.raises(ValueError, match=message):
        read_metrics(path)


@pytest.mark.parametrize("torn", [b"", b'{"step": 6, "pol'])
def test_truncate_then_append_equals_an_uninterrupted_file(tmp_path: Path, torn: bytes) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    lines = _write(whole, 8)
    _write(resumed, 6)
    with resumed.open("ab") as file:
        file.write(torn)
    assert truncate_after(resumed, 3) == 2 + bool(torn)
    writer = MetricsWriter(resumed)
    assert writer.last_step == 3
    for step in range(4, 8):
        writer.log(step, lines[step])
    assert resumed.read_bytes() == whole.read_bytes()


def test_truncate_edges(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert truncate_after(path, 3) == 0
    assert not path.exists()
    _write(path, 2)
    assert truncate_after(path, 5) == 0
    assert len(read_metrics(path)) == 2
    assert truncate_after(path, -1) == 2
    assert path.read_bytes() == b""


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import itertools, sys; from megatron_entropic.observability.metrics import METRIC_FIELDS, MetricsWriter\n"
        "writer = MetricsWriter(sys.argv[1])\n"
        "for step in itertools.count(): writer.log(step, {name: step for name in METRIC_FIELDS}); print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        confirmed = [int(process.stdout.readline()) for _ in range(20)][-1]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    steps = [line["step"] for line in read_metrics(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > confirmed
