"""Recorded rollouts read back exactly or not at all, and replay refuses a run that is not the recorded one."""

import contextlib
import dataclasses
import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import zstandard

from megatron_entropic.rollout.recording import (
    RecordedRollout,
    RecordingError,
    RolloutWriter,
    read_counts,
    read_rollouts,
    recorded_steps,
)
from megatron_entropic.rollout.replay_engine import ReplayEngine
from megatron_entropic.rollout.types import Prompt, Rollout, RolloutError
from megatron_entropic.tasks.task import Problem

SAMPLES = 3


def _prompts(step: int) -> list[Prompt]:
    return [Prompt(index=2 * step + i, text=f"p{i}", token_ids=(7, 2 * step + i)) for i in range(2)]


def _step(step: int) -> tuple[list[Rollout], dict[int, Problem], list[float]]:
    rng = random.Random(step)
    prompts = _prompts(step)
    rollouts = [
        Rollout(
            prompt_index=prompt.index,
            sample_index=sample,
            prompt_ids=np.array(prompt.token_ids, dtype=np.int32),
            response_ids=np.array([3, 4, sample], dtype=np.int32),
            log_probs=np.array([-rng.expovariate(1.0) for _ in range(3)], dtype=np.float32),
            text='é漢\u2028\n"\ud800\x00',
            finish_reason="length" if sample else "stop",
            first_version=step,
            last_version=step + sample % 2,
            server=f"server-{sample % 2}",
        )
        for prompt in prompts
        for sample in range(SAMPLES)
    ]
    return rollouts, {p.index: Problem(p.text, {"n": p.index, "nested": {"x": [1, 0.1]}}) for p in prompts}, [1 / 3] * len(rollouts)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    writer = RolloutWriter(tmp_path / "rollouts")
    for step in range(4):
        writer.write(step, *_step(step))
    return tmp_path / "rollouts"


def test_what_scoring_counted_is_read_back(tmp_path: Path) -> None:
    with contextlib.closing(RolloutWriter(tmp_path)) as writer:
        writer.write(0, *_step(0), {"reward/timeouts": 3, "rollout/unknown_tokens": 0})
        writer.write(1, *_step(1))
    assert read_counts(tmp_path, 0) == {"reward/timeouts": 3, "rollout/unknown_tokens": 0}
    assert read_counts(tmp_path, 1) == {}
    assert len(read_rollouts(tmp_path, 0)) == len(_step(0)[0])


def test_rollouts_read_back_exactly(recorded: Path) -> None:
    rollouts, problems, rewards = _step(2)
    expected = [RecordedRollout(2, r, problems[r.prompt_index], w) for r, w in zip(rollouts, rewards, strict=True)]
    assert read_rollouts(recorded, 2) == expected
    bits = [record.rollout.log_probs.tobytes() for record in read_rollouts(recorded, 2)]
    assert bits == [rollout.log_probs.tobytes() for rollout in rollouts]
    assert recorded_steps(recorded) == [0, 1, 2, 3]
    assert sorted(path.name for path in recorded.iterdir())[0] == "step-000000.safetensors.zst"  # no temporary files


def test_a_step_is_replaced_whole(recorded: Path) -> None:
    rollouts, problems, _ = _step(2)
    RolloutWriter(recorded).write(2, rollouts, problems, [0.0] * len(rollouts))
    assert {record.reward for record in read_rollouts(recorded, 2)} == {0.0}
    before = (recorded / "step-000002.safetensors.zst").read_bytes()
    with pytest.raises(ValueError, match="step 2, row 5"):
        RolloutWriter(recorded).write(2, rollouts, problems, [0.0] * (len(rollouts) - 1) + [float("nan")])
    assert (recorded / "step-000002.safetensors.zst").read_bytes() == before


def test_missing_steps_name_the_file_and_the_range(recorded: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"step-000009\.safetensors\.zst: step 9 is not recorded; the folder holds steps 0 to 3$"
    ):
        read_rollouts(recorded, 9)
    (recorded / "step-000001.safetensors.zst").unlink()
    with pytest.raises(FileNotFoundError, match="holds steps 0 to 3, with 1 missing between"):
        read_rollouts(recorded, 1)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_rollouts(recorded / "nowhere", 0)


def test_every_truncation_and_every_flipped_byte_is_noticed(recorded: Path) -> None:
    path = recorded / "step-000001.safetensors.zst"
    whole, expected = path.read_bytes(), read_rollouts(recorded, 1)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"step-000001\.safetensors\.zst"):
            read_rollouts(recorded, 1)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        assert _read_or_error(recorded) in (expected, "error")  # some bits of the frame header mean nothing
    for extra in (b"x", whole):
        path.write_bytes(whole + extra)
        with pytest.raises(ValueError, match="overlong"):
            read_rollouts(recorded, 1)


def _read_or_error(folder: Path) -> list[RecordedRollout] | str:
    try:
        return read_rollouts(folder, 1)
    except ValueError:
        return "error"


def _changed(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A record's bytes with another header."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop("reward"), "KeyError: 'reward'"),
        (lambda header: header["__metadata__"].update(format="x"), "format 'x'; this version reads"),
        (lambda header: header["__metadata__"].update(step="7"), "field step is 7"),
        (lambda header: header["__metadata__"].update(servers='["one"]'), "IndexError"),
        (lambda header: header["log_probs"].update(dtype="F64"), "field log_probs is F64, not F32"),
        (lambda header: header["log_probs"].update(data_offsets=[0, 8]), "field response_offsets does not fit log_probs"),
        (lambda header: header["response_offsets"].update(data_offsets=[0, 56]), "field response_offsets does not fit"),
        (lambda header: header["text"].update(data_offsets=[0, 10**9]), "buffer is smaller"),
    ],
)
def test_malformed_records_name_file_and_field(recorded: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = recorded / "step-000001.safetensors.zst"
    content = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    path.write_bytes(zstandard.ZstdCompressor().compress(_changed(content, change)))
    with pytest.raises(ValueError, match=rf"step-000001\.safetensors\.zst.*{message}"):
        read_rollouts(recorded, 1)


def test_the_file_is_a_safetensors_file(recorded: Path) -> None:
    content = zstandard.ZstdDecompressor().decompress((recorded / "step-000001.safetensors.zst").read_bytes())
    arrays = safetensors.numpy.load(content)
    assert arrays["response_ids"].tolist() == [token for rollout in _step(1)[0] for token in rollout.response_ids.tolist()]


def test_steps_are_recorded_beside_the_work_and_failures_surface_at_the_next(tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path)
    writer.begin(0, *_step(0))
    writer.begin(1, *_step(1))
    writer.wait()
    assert recorded_steps(tmp_path) == [0, 1]
    rollouts, problems, rewards = _step(2)
    writer.begin(2, rollouts, problems, [*rewards[1:], math.inf])
    with pytest.raises(ValueError, match=r"step 2, row 5.*must be finite"):
        writer.begin(3, *_step(3))
    writer.begin(3, *_step(3))  # said once
    writer.close()
    writer.close()
    assert recorded_steps(tmp_path) == [0, 1, 3]


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path)
    (tmp_path / ".step-000000.safetensors.zst.tmp").symlink_to("/dev/full")
    with pytest.raises(RecordingError, match=rf"^{tmp_path}/step-000000\.safetensors\.zst: .*step 0.*No space left on device"):
        writer.write(0, *_step(0))
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_replayed_is_not_written(tmp_path: Path) -> None:
    rollouts, problems, rewards = _step(0)
    writer = RolloutWriter(tmp_path)
    bad_length = dataclasses.replace(rollouts[1], log_probs=np.zeros(1, dtype=np.float32))
    bad_number = dataclasses.replace(rollouts[1], log_probs=np.array([0.0, -np.inf, 0.0], dtype=np.float32))
    for bad, message in ((bad_length, "1 log_probs for 3"), (bad_number, "server server-1: field log_probs holds -inf")):
        with pytest.raises(ValueError, match=f"step 0, row 1.*{message}"):
            writer.write(0, [rollouts[0], bad], problems, rewards[:2])
    with pytest.raises(ValueError, match="no problem for prompt_index 1"):
        writer.write(0, rollouts, {0: problems[0]}, rewards)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        writer.write(0, rollouts, {index: Problem("p", {"x": object()}) for index in problems}, rewards)
    with pytest.raises(ValueError, match="6 rollouts but 2 rewards"):
        writer.write(0, rollouts, problems, rewards[:2])
    assert recorded_steps(tmp_path) == []


def test_replay_returns_the_recorded_steps_in_order(recorded: Path) -> None:
    engine = ReplayEngine(recorded)
    drained: list[str] = []

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("a", "b"):
            drained.append(name)
            yield name, torch.zeros(1)

    for step in range(4):
        assert engine.next_step == step
        assert engine.generate(_prompts(step), SAMPLES) == _step(step)[0]
        engine.sync_weights(weights(), version=step + 1)
    assert (engine.version, engine.versions_received, len(drained)) == (4, 4, 8)
    with pytest.raises(RolloutError, match=r"replay of step 4: .* the folder holds steps 0 to 3"):
        engine.generate(_prompts(4), SAMPLES)
    engine.close()
    engine.close()


def test_seek(recorded: Path) -> None:
    engine = ReplayEngine(recorded)
    engine.seek(2)
    assert engine.generate(_prompts(2), SAMPLES) == _step(2)[0]
    engine.seek(4)  # resumed at the very end
    with pytest.raises(RolloutError, match="cannot seek to step 9; recorded steps run from 0 to 3"):
        engine.seek(9)


def test_replay_starts_with_the_first_recorded_step(recorded: Path) -> None:
    (recorded / "step-000000.safetensors.zst").unlink()
    assert ReplayEngine(recorded).generate(_prompts(1), SAMPLES) == _step(1)[0]


@pytest.mark.parametrize(
    ("prompts", "samples", "message"),
    [
        (_prompts(1), SAMPLES, "rollout 1: recorded prompt_index 0, sample_index 0; this run asks for prompt_index 2, sample_index 0"),
        (_prompts(0), 2, "rollout 3: recorded prompt_index 0, sample_index 2; this run asks for prompt_index 1, sample_index 0"),
        (_prompts(0)[:1], SAMPLES, "6 recorded rollouts; this run asks for 1 prompts x 3 samples = 3"),
        (_prompts(0) + _prompts(1), SAMPLES, "6 recorded rollouts; this run asks for 4 prompts x 3 samples = 12"),
        ([_prompts(0)[0], Prompt(1, "p", (7, 9))], SAMPLES, "rollout 4: prompt_index 1 differs at token 1: recorded 1, this run has 9"),
        (
            [_prompts(0)[0], Prompt(1, "p", (7,))],
            SAMPLES,
            "rollout 4: prompt_index 1 differs in length: recorded 2 tokens, this run has 1",
        ),
    ],
)
def test_another_run_is_refused_with_the_first_difference(recorded: Path, prompts: list[Prompt], samples: int, message: str) -> None:
    engine = ReplayEngine(recorded)
    with pytest.raises(RolloutError, match=rf"step-000000\.safetensors\.zst.*{message}"):
        engine.generate(prompts, samples)
    assert engine.generate(_prompts(0), SAMPLES) == _step(0)[0]  # a refused call does not advance


def test_replay_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=r"rollout\.replay_path: .*no such folder"):
        ReplayEngine(tmp_path / "none")
    with pytest.raises(RolloutError, match="holds no recorded steps"):
        ReplayEngine(tmp_path)
