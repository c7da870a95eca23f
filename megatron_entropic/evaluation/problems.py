"""Problems of an evaluation, each asked once, and whether the policy was trained on them."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_entropic.config import Config
from megatron_entropic.rollout.prompts import make_stream
from megatron_entropic.rollout.types import Prompt
from megatron_entropic.start_checks.data import check_data
from megatron_entropic.tasks import make_task
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
    stream = make_stream(cfg, task, prompts_per_step=1)
    notes, count = check_data(cfg, seed), wanted or PROMPTS
    if isinstance(task, RowTask) and len(task.rows) < count:
        notes += [f"{wanted} were asked for, {len(task.rows)} are there: each is taken once"] if wanted else []
        count = len(task.rows)
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
    if not isinstance(task, RowTask):
        return None, "another stream than the run was trained on; where few problems are possible, some are the same"
    try:
        learned = make_task(trained.task, trained.trainer.seed, trained.data)
    except (ValueError, OSError) as error:
        return None, f"whether the run was trained on these problems is not known: {error}"
    known = {row.prompt for row in learned.rows} if isinstance(learned, RowTask) else set()
    rows = {row.number: row.prompt for row in task.rows}
    seen = sum(rows[problem.data["line"]] in known for problem in problems.values())
    if not seen:
        return 0, "none of them was trained on"
    return (
        seen,
        f"not fresh: the run was trained on {seen} of these {len(problems)}; for fresh ones name another file by task.options.path",
    )
