"""The replay engine: returns the rollouts another run recorded, so that one step can be run and debugged by anyone.

Layout invariance and bit-for-bit resume are shown with it: the same rollouts reach the trainer whatever the layout, and
no server takes part. The prompts must be those of the recorded run; the first difference is an error.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from megatron_entropic.config import Config
from megatron_entropic.rollout.recording import RecordedRollout, file_name, read_rollouts, recorded_file, recorded_steps
from megatron_entropic.rollout.sampling_record import check_replay
from megatron_entropic.rollout.types import Finished, NamedWeights, Prompt, Rollout, RolloutError


class ReplayEngine:
    """A RolloutEngine over the rollouts/ folder `path` of a recorded run.

    Each `generate` returns the step `next_step`, which starts with the first one recorded. `versions_received` counts the weight
    updates, `version` is the last one's; neither changes what is returned: rollouts carry the versions recorded.
    Raises RolloutError when the folder is missing or empty.
    """

    in_background = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.version = 0
        self.versions_received = 0
        try:
            self._steps = recorded_steps(self.path)
        except FileNotFoundError as error:
            raise RolloutError(f"rollout.replay_path: {error}") from error
        if not self._steps:
            raise RolloutError(f"rollout.replay_path={self.path} holds no recorded steps ({file_name(0)}, ...)")
        self.next_step = self._steps[0]

    def start(self) -> None:
        """There is nothing to wait for."""

    def seek(self, step: int) -> None:
        """Makes `step` the next one returned; a resumed run calls it. Raises RolloutError when it was not recorded.

        The step after the last recorded one is allowed: a run resumed at its very end has nothing left to generate.
        """
        if step not in self._steps and step != self._steps[-1] + 1:
            raise RolloutError(
                f"{self.path}: cannot seek to step {step}; recorded steps run from {self._steps[0]} to {self._steps[-1]}"
            )
        self.next_step = step

    def generate(self, prompts: Sequence[Prompt], samples_per_prompt: int, finished: Finished | None = None) -> list[Rollout]:
        """The next step's rollouts, ordered by prompt, then sample.

        Raises RolloutError when the step is missing or unreadable, or was recorded with other prompts, prompt tokens or
        numbers of samples: the message names the file and the first difference. A failed call does not advance.
        """
        try:
            records = read_rollouts(self.path, self.next_step)
        except (FileNotFoundError, ValueError) as error:
            raise RolloutError(f"replay of step {self.next_step}: {error}") from error
        self._check(records, prompts, samples_per_prompt)
        self.next_step += 1
        return [record.rollout for record in records]

    def sync_weights(self, weights: NamedWeights, version: int) -> None:
        """Drains `weights` (the trainer's ranks take part in producing them) and counts the version."""
        for _ in weights:
            pass
        self.version = version
        self.versions_received += 1

    def close(self) -> None:
        """Nothing is held between calls."""

    def _check(self, records: Sequence[RecordedRollout], prompts: Sequence[Prompt], samples_per_prompt: int) -> None:
        where = recorded_file(self.path, self.next_step)
        expected = [(prompt, sample) for prompt in prompts for sample in range(samples_per_prompt)]
        for row, ((prompt, sample), record) in enumerate(zip(expected, records, strict=False)):
            rollout = record.rollout
            found = (rollout.prompt_index, rollout.sample_index)
            if found != (prompt.index, sample):
                raise RolloutError(
                    f"{where}, rollout {row + 1}: recorded prompt_index {found[0]}, sample_index {found[1]}; "
                    f"this run asks for prompt_index {prompt.index}, sample_index {sample}. "
                    "batch.* and trainer.seed must be those of the recorded run"
                )
            recorded_ids = tuple(rollout.prompt_ids.tolist())
            if recorded_ids != prompt.token_ids:
                raise RolloutError(
                    f"{where}, rollout {row + 1}: prompt_index {prompt.index} {_first_difference(recorded_ids, prompt.token_ids)}. "
                    "task.*, trainer.seed and the tokenizer must be those of the recorded run"
                )
        if len(records) != len(expected):
            raise RolloutError(
                f"{where}: {len(records)} recorded rollouts; this run asks for {len(prompts)} prompts x "
                f"{samples_per_prompt} samples = {len(expected)}. batch.* must be that of the recorded run"
            )


def make_replay_engine(cfg: Config) -> ReplayEngine:
    """The engine of `rollout.engine=replay`. Raises RolloutError, and ValueError for rollouts of another model or temperature."""
    assert cfg.rollout.replay_path is not None
    check_replay(cfg.model, cfg.rollout)
    return ReplayEngine(cfg.rollout.replay_path)


def _first_difference(recorded_ids: Sequence[int], asked_ids: Sequence[int]) -> str:
    for position, (recorded, asked) in enumerate(zip(recorded_ids, asked_ids, strict=False)):
        if recorded != asked:
            return f"differs at token {position}: recorded {recorded}, this run has {asked}"
    return f"differs in length: recorded {len(recorded_ids)} tokens, this run has {len(asked_ids)}"
