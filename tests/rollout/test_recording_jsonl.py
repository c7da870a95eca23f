"""Recordings of earlier versions are read, replayed and replaced."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from megatron_entropic.rollout.recording import RolloutWriter, read_rollouts, recorded_steps
from megatron_entropic.rollout.replay_engine import ReplayEngine
from megatron_entropic.rollout.types import Prompt
from megatron_entropic.tasks.task import Problem
from tests.rollout.tokens import one_token_rollout

LOG_PROBS = [-0.10000000149011612, -1.401298464324817e-45]
"""float32 numbers as they were written, in digits of float64."""


def line(sample: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": 1,
        "prompt_index": 5,
        "sample_index": sample,
        "prompt_ids": [7, 8],
        "response_ids": [3, 4],
        "log_probs": LOG_PROBS,
        "text": "\u00e9\ud800",
        "finish_reason": "stop",
        "first_version": 1,
        "last_version": 2,
        "server": "vllm_0",
        "problem": {"prompt": "p", "data": {"n": 3}},
        "reward": 0.25,
    } | changes


def record(folder: Path, *lines: dict[str, Any]) -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in lines).encode()
    (folder / "step-000001.jsonl.zst").write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(text))


def test_an_old_record_is_read_bit_for_bit_and_replayed(tmp_path: Path) -> None:
    record(tmp_path, line(0), line(1))
    records = read_rollouts(tmp_path, 1)
    assert records[1].rollout.log_probs.tobytes() == np.array(LOG_PROBS, dtype=np.float32).tobytes()
    assert records[1].rollout.log_probs.tolist() == LOG_PROBS
    assert (records[0].rollout.text, records[0].problem, records[0].reward) == ("\u00e9\ud800", Problem("p", {"n": 3}), 0.25)
    replayed = ReplayEngine(tmp_path).generate([Prompt(5, "p", (7, 8))], 2)
    assert replayed == [entry.rollout for entry in records]
    assert replayed[0] != dataclasses.replace(replayed[0], response_ids=replayed[0].response_ids + 1)


def test_a_step_done_again_takes_the_place_of_the_old_record(tmp_path: Path) -> None:
    record(tmp_path, line(0))
    RolloutWriter(tmp_path).write(1, [one_token_rollout(5, 0)], {5: Problem("p")}, [1.0])
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001.safetensors.zst"]
    assert recorded_steps(tmp_path) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("reward"), r"missing fields \['reward'\]"),
        (lambda entry: entry.update(extra=1), r"unknown fields \['extra'\]"),
        (lambda entry: entry.update(step=7), "field step is 7"),
        (lambda entry: entry.update(prompt_ids=[1, "2"]), "field prompt_ids is not a list of integers"),
        (lambda entry: entry.update(log_probs=[0.0, float("nan")]), "field log_probs is not a list of finite numbers"),
        (lambda entry: entry.update(log_probs=[0.0]), "1 log_probs for 2 response_ids"),
        (lambda entry: entry.update(problem="p"), "field problem is not an object"),
        (lambda entry: entry.update(first_version=True), "field first_version is not an integer"),
    ],
)
def test_malformed_lines_name_line_and_field(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    bad = line(1)
    change(bad)
    record(tmp_path, line(0), bad)
    with pytest.raises(ValueError, match=rf"step-000001\.jsonl\.zst, line 2: .*{message}"):
        read_rollouts(tmp_path, 1)
