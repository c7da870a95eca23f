"""Problems of an evaluation, each asked once, and whether the policy was trained on them."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_entropic.config import Config
from megatron_entropic.rollout.prompts import make_stream
from megatron_entropic.rollout.types import Prompt
from megatron_entropic.start_checks.data import check_data
from megatron_entropic.tasks import make_task
from megatron_entropic.tasks.data import DataTask
from megatron_entropic.tasks.data.selection import prompt_key
from megatron_entropic.tasks.row_task import RowTask
from megatron_entropic.tasks.task import Problem, Task

PROMPTS = 256
"""Problems of an evaluation that does not say how many; all rows of a data file that has fewer."""
SEED_OFFSET = 1_000_000
"""Added to trainer.seed: evaluation draws from another stream of problems than training."""


@dataclass(frozen=True)
class ChosenProblems:
    """The prompts in their order, their problems by prompt index, and the task of that `seed` which judges the answers.

    `seen` of them were trained on (None: not known); `notes` say so, and what else the scores depend on.
    """

    task: Task
    seed: int
    prompts: list[Prompt]
    problems: Mapping[int, Problem]
    seen: int | None
    notes: tuple[str, ...]


def choose_problems(cfg: Config, wanted: int | None, trained: Config | None) -> ChosenProblems:
    """`wanted` problems of the task, PROMPTS by default; of a data file no row twice. `trained`: settings of the policy's run.

    Raises ValueError as make_task does, and for prompts that leave no room for a response.
    """
    seed = cfg.trainer.seed + SEED_OFFSET
    task = make_task(cfg.task, seed, cfg.data)
    if isinstance(task, DataTask):
        task = task.once()
    stream = make_stream(cfg, task, prompts_per_step=1)
    notes, count = check_data(cfg, seed), wanted or PROMPTS
    rows = len(task.rows) if isinstance(task, RowTask) else len(task) if isinstance(task, DataTask) else count
    if rows < count:
        notes += [f"{wanted} were asked for, {rows} are there: each is taken once"] if wanted else []
        count = rows
    stream.prompts_per_step = count
    prompts, problems = stream.step(0)
    different = len({problem.prompt for problem in problems.values()})
    if different < count:
        notes.append(f"{different} of the {count} prompts are different: the others are repetitions, and are counted")
    seen, remark = _seen(task, problems, trained)
    return ChosenProblems(task, seed, prompts, problems, seen, (*notes, *([remark] if remark else [])))


def _seen(task: Task, problems: Mapping[int, Problem], trained: Config | None) -> tuple[int | None, str]:
    """Number of problems that the policy's run was trained on, and a remark on that."""
    if trained is None:
        return None, "whether the model was trained on these problems is not known here"
    if not isinstance(task, RowTask | DataTask):
        return None, "another stream than the run was trained on; where few problems are possible, some are the same"
    try:
        learned = make_task(trained.task, trained.trainer.seed, trained.data)
    except (ValueError, OSError) as error:
        return None, f"whether the run was trained on these problems is not known: {error}"
    seen = _in_training(task, problems, learned)
    if not seen:
        return 0, "none of them was trained on"
    return (
        seen,
        f"not fresh: the run was trained on {seen} of these {len(problems)}; for fresh ones name another file by "
        f"{'data.train' if isinstance(task, DataTask) else 'task.options.path'}",
    )


def _in_training(task: RowTask | DataTask, problems: Mapping[int, Problem], learned: Task) -> int:
    """How many of the problems have a prompt that `learned` has, too."""
    if isinstance(task, DataTask):
        asked = learned.prompt_keys() if isinstance(learned, DataTask) else set()
        return sum(prompt_key(problem.prompt) in asked for problem in problems.values())
    known = {row.prompt for row in learned.rows} if isinstance(learned, RowTask) else set()
    rows = {row.number: row.prompt for row in task.rows}
    return sum(rows[problem.data["line"]] in known for problem in problems.values())
