"""File format of a step's rollouts: raw arrays in the layout of safetensors, which every language reads without running anything.

Shapes: B rollouts (by prompt, then sample), P prompts, N response tokens. Texts are UTF-8, lone surrogates included ("surrogatepass").

    prompt_index, sample_index, first_version, last_version    int64 [B]
    server, finish_reason                                      int64 [B]: indices into the metadata's lists of names
    reward                                                     float64 [B]
    prompts, prompt_offsets, prompt_ids                        int64 [P]: each prompt's index; int64 [P + 1]: borders of its int32 ids
    problems                                                   uint8: JSON, a list of P objects with prompt and data, where a chat
                                                               asks it messages, with arguments of its template template_options
    response_offsets, response_ids, log_probs                  int64 [B + 1], int32 [N], float32 [N]
    text_offsets, text                                         int64 [B + 1], uint8
    metadata                                                   format, step, servers, finish_reasons, counts (JSON: what scoring
                                                               counted and the means of parts, by metric)
"""

import itertools
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_entropic.rollout.types import FloatArray, IntArray, Rollout
from megatron_entropic.tasks.task import Problem

FORMAT = "megatron_entropic rollouts 2"
_ENCODING = ("utf-8", "surrogatepass")
_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
}
_ARRAYS = {
    **dict.fromkeys(("prompt_index", "sample_index", "first_version", "last_version", "server", "finish_reason"), "I64"),
    "reward": "F64",
    **dict.fromkeys(("prompts", "prompt_offsets", "response_offsets", "text_offsets"), "I64"),
    **dict.fromkeys(("prompt_ids", "response_ids"), "I32"),
    "log_probs": "F32",
    **dict.fromkeys(("problems", "text"), "U8"),
}
"""Type of each array, in the file's order: wide ones first, so that all are aligned."""

RecordArray = npt.NDArray[Any]


@dataclass(frozen=True)
class RecordedRollout:
    """A rollout as it was trained on: `step` is the loop's step (from 0), `reward` its score less what its length costs."""

    step: int
    rollout: Rollout
    problem: Problem
    reward: float


def encoded(
    step: int,
    rollouts: Sequence[Rollout],
    problems: Mapping[int, Problem],
    rewards: Sequence[float],
    counts: Mapping[str, float] | None = None,
) -> tuple[int, Iterator[bytes | memoryview]]:
    """(bytes in all, the bytes piece by piece) of a step's file. The arrays of the rollouts are handed out, not copied.

    Raises ValueError naming the row for what could not be replayed: non-finite numbers, lengths that differ, a prompt without a
    problem or with two kinds of ids, problem data that JSON cannot hold.
    """
    for row, rollout in enumerate(rollouts):
        _check(f"step {step}, row {row}", rollout, problems, rewards[row])
    prompts = _prompts(step, rollouts)
    texts = [rollout.text.encode(*_ENCODING) for rollout in rollouts]
    servers, reasons = sorted({rollout.server for rollout in rollouts}), ["stop", "length"]
    pieces: dict[str, Sequence[bytes | RecordArray]] = {
        name: [np.array([getattr(rollout, name) for rollout in rollouts], dtype="<i8")]
        for name in ("prompt_index", "sample_index", "first_version", "last_version")
    }
    pieces |= {
        "server": [np.array([servers.index(rollout.server) for rollout in rollouts], dtype="<i8")],
        "finish_reason": [np.array([reasons.index(rollout.finish_reason) for rollout in rollouts], dtype="<i8")],
        "reward": [np.array(rewards, dtype="<f8")],
        "prompts": [np.array(list(prompts), dtype="<i8")],
        "prompt_offsets": [_offsets(list(prompts.values()))],
        "prompt_ids": list(prompts.values()),
        "problems": [_problems_json(step, [problems[index] for index in prompts])],
        "response_offsets": [_offsets([rollout.response_ids for rollout in rollouts])],
        "response_ids": [rollout.response_ids for rollout in rollouts],
        "log_probs": [rollout.log_probs for rollout in rollouts],
        "text_offsets": [_offsets(texts)],
        "text": texts,
    }
    metadata = {"format": FORMAT, "step": str(step), "servers": json.dumps(servers), "finish_reasons": json.dumps(reasons)}
    metadata["counts"] = json.dumps(dict(counts or {}))
    header, size = _header(pieces, metadata)
    return len(header) + size, _in_order(header, pieces)


def _check(where: str, rollout: Rollout, problems: Mapping[int, Problem], reward: float) -> None:
    if rollout.prompt_index not in problems:
        raise ValueError(f"{where}: no problem for prompt_index {rollout.prompt_index}")
    if len(rollout.log_probs) != len(rollout.response_ids):
        raise ValueError(f"{where}: {len(rollout.log_probs)} log_probs for {len(rollout.response_ids)} response_ids")
    for name, values in (("log_probs", rollout.log_probs), ("reward", np.array([reward]))):
        if not np.isfinite(values).all():
            bad = values[~np.isfinite(values)][0]
            raise ValueError(f"{where}, server {rollout.server}: field {name} holds {bad}; it must be finite")


def _prompts(step: int, rollouts: Sequence[Rollout]) -> dict[int, IntArray]:
    """Token ids by prompt index, in the order of first use."""
    prompts: dict[int, IntArray] = {}
    for row, rollout in enumerate(rollouts):
        known = prompts.setdefault(rollout.prompt_index, rollout.prompt_ids)
        if known is not rollout.prompt_ids and not np.array_equal(known, rollout.prompt_ids):
            raise ValueError(f"step {step}, row {row}: other prompt_ids than those of prompt_index {rollout.prompt_index} before")
    return prompts


def _problems_json(step: int, problems: Sequence[Problem]) -> bytes:
    try:
        return json.dumps([_problem_entry(problem) for problem in problems], allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"step {step}: a problem cannot be written as JSON: {error}") from error


def _problem_entry(problem: Problem) -> dict[str, Any]:
    """A problem as JSON; what most problems do not have is left out."""
    entry: dict[str, Any] = {"prompt": problem.prompt, "data": dict(problem.data)}
    if problem.messages:
        entry["messages"] = [dict(message) for message in problem.messages]
    if problem.template_options:
        entry["template_options"] = dict(problem.template_options)
    return entry


def _problem_of(entry: dict[str, Any]) -> Problem:
    messages = tuple({str(name): str(text) for name, text in message.items()} for message in entry.get("messages", ()))
    return Problem(str(entry["prompt"]), dict(entry["data"]), messages, dict(entry.get("template_options", {})))


def _offsets(parts: Sequence[bytes | RecordArray]) -> RecordArray:
    return np.cumsum([0, *map(len, parts)], dtype="<i8")


def _header(pieces: Mapping[str, Sequence[bytes | RecordArray]], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """(safetensors' header, bytes of all arrays)."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, dtype in _ARRAYS.items():
        count = sum(map(len, pieces[name]))
        end = at + count * _DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": [count], "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def _in_order(header: bytes, pieces: Mapping[str, Sequence[bytes | RecordArray]]) -> Iterator[bytes | memoryview]:
    yield header
    for name, dtype in _ARRAYS.items():
        for part in pieces[name]:
            yield part if isinstance(part, bytes) else np.ascontiguousarray(part, dtype=_DTYPES[dtype]).data


def decoded(where: str, content: bytes) -> list[RecordedRollout]:
    """The rollouts of a file's bytes; their arrays share its memory. Raises ValueError starting with `where`."""
    try:
        arrays, metadata = _read_arrays(content)
        step = int(metadata["step"])
        servers, reasons = _names(metadata, "servers"), _names(metadata, "finish_reasons")
        prompts = _rows(arrays, "prompt_offsets", "prompt_ids")
        listed = json.loads(arrays["problems"].tobytes())
        problems = [_problem_of(entry) for entry in listed]
        by_index = dict(zip(arrays["prompts"].tolist(), zip(prompts, problems, strict=True), strict=True))
        columns = [arrays[name].tolist() for name in list(_ARRAYS)[:7]]
        responses, texts = _rows(arrays, "response_offsets", "response_ids"), _rows(arrays, "text_offsets", "text")
        log_probs: list[FloatArray] = _rows(arrays, "response_offsets", "log_probs")
        for name in ("log_probs", "reward"):
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"field {name} holds a number that is not finite")
        records = []
        for *row, response, log_prob, text in zip(*columns, responses, log_probs, texts, strict=True):
            prompt_index, sample_index, first, last, server, reason, reward = row
            ids, problem = by_index[prompt_index]
            said = text.tobytes().decode(*_ENCODING)
            rollout = Rollout(prompt_index, sample_index, ids, response, log_prob, said, reasons[reason], first, last, servers[server])
            records.append(RecordedRollout(step, rollout, problem, reward))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not a record of rollouts ({type(error).__name__}: {error})") from error
    return records


def decoded_counts(where: str, content: bytes) -> dict[str, float]:
    """Counts of scoring and means of parts, by metric, from a file's bytes. Raises ValueError starting with `where`."""
    try:
        counts = json.loads(_entries(content)["__metadata__"].get("counts", "{}"))
        return {str(name): count if isinstance(count, int) else float(count) for name, count in counts.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{where}: not a record of rollouts ({type(error).__name__}: {error})") from error


def _entries(content: bytes) -> dict[str, Any]:
    """safetensors' header."""
    (length,) = struct.unpack_from("<Q", content)
    entries: dict[str, Any] = json.loads(content[8 : 8 + length])
    return entries


def _read_arrays(content: bytes) -> tuple[dict[str, RecordArray], dict[str, str]]:
    (length,) = struct.unpack_from("<Q", content)
    entries = _entries(content)
    metadata: dict[str, str] = entries["__metadata__"]
    if metadata["format"] != FORMAT:
        raise ValueError(f"format {metadata['format']!r}; this version reads {FORMAT!r}")
    arrays = {}
    for name, dtype in _ARRAYS.items():
        if entries[name]["dtype"] != dtype:
            raise ValueError(f"field {name} is {entries[name]['dtype']}, not {dtype}")
        start, end = entries[name]["data_offsets"]
        count = (end - start) // _DTYPES[dtype].itemsize
        arrays[name] = np.frombuffer(content, _DTYPES[dtype], count, 8 + length + start)
    return arrays, metadata


def _names(metadata: Mapping[str, str], field: str) -> list[str]:
    names = json.loads(metadata[field])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"field {field} is not a list of texts")
    return names


def _rows(arrays: Mapping[str, RecordArray], offsets: str, values: str) -> list[RecordArray]:
    """The parts of one array that another's offsets cut."""
    borders = arrays[offsets]
    if not len(borders) or borders[0] != 0 or borders[-1] != len(arrays[values]) or (np.diff(borders) < 0).any():
        raise ValueError(f"field {offsets} does not fit {values}")
    cuts = borders.tolist()
    return [arrays[values][start:stop] for start, stop in itertools.pairwise(cuts)]
