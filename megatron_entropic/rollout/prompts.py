"""The run's data order: step -> problems -> prompts with token ids that fit the context."""

from collections.abc import Mapping
from typing import Literal

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import BatchConfig, Config, ModelConfig, RolloutConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.rollout.prompt_encoder import PromptEncoder
from megatron_entropic.rollout.prompt_lengths import select_by_tokens
from megatron_entropic.rollout.types import Prompt
from megatron_entropic.tasks.data import DataTask
from megatron_entropic.tasks.data.curriculum import Curriculum
from megatron_entropic.tasks.row_task import RowTask
from megatron_entropic.tasks.rows import DataRow
from megatron_entropic.tasks.task import Problem, Task

_FAR = 1 << 40
"""First index at which the stream looks for a substitute prompt that fits: no run reaches it."""
_TRIES = 100


def prompt_room(model: ModelConfig, batch: BatchConfig, rollout: RolloutConfig) -> int:
    """Most tokens of a prompt: what the model's context and a micro-batch leave beside rollout.max_new_tokens.

    Raises ValueError when that is none.
    """
    context = min(Architecture.from_hf(model_folder(model.hf_path).hf_dir).max_positions, batch.max_tokens_per_micro_batch)
    room = context - rollout.max_new_tokens
    if room < 1:
        raise ValueError(
            f"rollout.max_new_tokens={rollout.max_new_tokens} leaves no room for a prompt in {context} tokens: the smaller of the "
            "model's max_position_embeddings and batch.max_tokens_per_micro_batch"
        )
    return room


class PromptStream:
    """An endless stream: step k holds prompts k n ... (k + 1) n - 1. The position in it is the step, so resuming needs no state.

    With a `curriculum`, which has a state, steps are to be asked for in their order, each once.

    Prompts of more than `room` tokens are what `overlong` (task.overlong_prompts) says: rows of a file are dropped when the stream
    is made, other problems replaced by one further on; truncated; or, with "refuse", left for the engine to refuse.
    """

    def __init__(
        self,
        task: Task,
        encoder: PromptEncoder,
        *,
        prompts_per_step: int,
        room: int,
        overlong: Literal["refuse", "drop", "truncate"],
        curriculum: Curriculum | None = None,
    ) -> None:
        self.task = task
        self.encoder = encoder
        self.prompts_per_step = prompts_per_step
        self.room = room
        self.overlong = overlong
        self.curriculum = curriculum
        self.dropped: list[DataRow] = []
        if overlong == "drop" and isinstance(task, RowTask):
            self.dropped = task.restrict(lambda row: encoder.fits(task.problem_of(row).prompt, room))

    def step(self, step: int) -> tuple[list[Prompt], Mapping[int, Problem]]:
        """The prompts of a step, and their problems by prompt index. Raises ValueError for a prompt without tokens."""
        first = step * self.prompts_per_step
        pairs = {index: self._pair(index, self._number(index)) for index in range(first, first + self.prompts_per_step)}
        return [prompt for prompt, _ in pairs.values()], {index: problem for index, (_, problem) in pairs.items()}

    def _number(self, index: int) -> int:
        """Which of the task's problems prompt `index` asks: that of its own number, unless a curriculum chooses."""
        return index if self.curriculum is None else self.curriculum.next(self.task.problem)

    def _pair(self, index: int, number: int) -> tuple[Prompt, Problem]:
        for attempt in range(_TRIES):
            problem = self.task.problem(number + attempt * _FAR)
            prompt = self._prompt(index, problem)
            if self.overlong != "drop" or len(prompt.token_ids) <= self.room:
                return prompt, problem
        raise ValueError(
            f"prompt {index} of the task: {_TRIES} problems in a row have more than {self.room} tokens; lower rollout.max_new_tokens, "
            "or choose shorter problems by task.options"
        )

    def _prompt(self, index: int, problem: Problem) -> Prompt:
        text, token_ids = self.encoder.encode(problem)
        if self.overlong == "truncate" and len(token_ids) > self.room:
            text, token_ids = self.encoder.encode(self.encoder.cut_problem(problem, self.room))
        if not token_ids:
            raise ValueError(f"prompt {index} of the task has no tokens: {text!r}")
        return Prompt(index, text, token_ids)


def make_stream(cfg: Config, task: Task, *, prompts_per_step: int, curriculum: Curriculum | None = None) -> PromptStream:
    """The stream of a run's prompts from `task`. Raises ValueError when no prompt fits."""
    encoder = PromptEncoder(model_folder(cfg.model.hf_path).hf_dir, chat_template=cfg.task.chat_template)
    room = prompt_room(cfg.model, cfg.batch, cfg.rollout)
    if isinstance(task, DataTask):
        select_by_tokens(task, encoder, cfg.data, room=room if cfg.task.overlong_prompts == "drop" else None)
    return PromptStream(
        task,
        encoder,
        prompts_per_step=prompts_per_step,
        room=room,
        overlong=cfg.task.overlong_prompts,
        curriculum=curriculum,
    )
