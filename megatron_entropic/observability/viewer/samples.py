"""All samples of a prompt for the page: their texts, token by token, with what was recorded of each token."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_entropic.observability.report_samples import escaped
from megatron_entropic.observability.viewer.pieces import pieces_of, tokenizer_of
from megatron_entropic.rollout.recording import RecordedRollout, read_rollouts, recorded_file
from megatron_entropic.rollout.token_recording import RecordedTokens, read_tokens, token_file_name

_STEPS_KEPT = 4
"""Steps whose files stay in memory: a page asks for one again and again."""


class Samples:
    """Reads the samples of the run in `run_dir`, whose settings are `config`. Any thread may use it."""

    def __init__(self, run_dir: Path, config: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = run_dir / "rollouts"
        self.tokenizer, self.remark = tokenizer_of(run_dir, config)
        self._read = lru_cache(maxsize=_STEPS_KEPT)(self._read_step)

    def of_prompt(self, step: int, prompt_index: int) -> dict[str, Any]:
        """The prompt and its samples, as JSON holds them.

        Raises FileNotFoundError and ValueError as read_rollouts, LookupError when the step has no such prompt.
        """
        records, tokens, remark = self._read(step, self._stamp(step))
        rows = [row for row, record in enumerate(records) if record.rollout.prompt_index == prompt_index]
        if not rows:
            raise LookupError(f"step {step + 1} has no prompt {prompt_index}")
        problem = records[rows[0]].problem
        return {
            "step": step,
            "prompt_index": prompt_index,
            "prompt": escaped(problem.prompt),
            "problem": {name: escaped(str(value)) for name, value in problem.data.items()},
            "samples": [self._sample(records[row], tokens, row) for row in rows],
            "remarks": [text for text in (self.remark, remark) if text],
        }

    def _stamp(self, step: int) -> tuple[int, ...]:
        """What changes when the files of a step do."""
        files = [recorded_file(self.folder, step), self.folder / token_file_name(step)]
        return tuple(number for file in files if file.exists() for number in (file.stat().st_mtime_ns, file.stat().st_size))

    def _read_step(self, step: int, stamp: tuple[int, ...]) -> tuple[list[RecordedRollout], RecordedTokens | None, str | None]:
        records = read_rollouts(self.folder, step)
        try:
            return records, read_tokens(self.folder, step, [record.rollout for record in records]), None
        except ValueError as error:
            return records, None, str(error)

    def _sample(self, record: RecordedRollout, tokens: RecordedTokens | None, row: int) -> dict[str, Any]:
        rollout = record.rollout
        ids = rollout.response_ids.tolist()
        values: dict[str, list[Any]] = {"sampler_log_prob": _plain(rollout.log_probs)}
        update = None
        if tokens is not None:
            recorded = {name: parts[row] for name, parts in tokens.values.items()}
            values |= {name: _plain(numbers) for name, numbers in recorded.items()}
            values["gap"] = _plain(recorded["log_prob"] - rollout.log_probs)
            values["control"] = _plain(recorded["weight"] - recorded["plain_weight"])
            update = {name: _number(value) for name, value in tokens.updates[tokens.update[row]].items()}
        return {
            "sample_index": rollout.sample_index,
            "reward": _number(record.reward),
            "finish_reason": rollout.finish_reason,
            "versions": [rollout.first_version, rollout.last_version],
            "server": escaped(rollout.server),
            "text": escaped(rollout.text),
            "ids": ids,
            "pieces": [escaped(piece) for piece in pieces_of(self.tokenizer, ids)],
            "values": values,
            "update": update,
        }


def _plain(values: npt.NDArray[np.float32] | Sequence[float]) -> list[Any]:
    """As JSON holds them, five digits each."""
    return [_number(float(f"{value:.5g}")) for value in values]


def _number(value: Any) -> Any:
    """JSON has no NaN or infinity: as words, which JavaScript's Number reads."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
