"""Whether a policy could be right at all: each known answer of a data file is given back to the verifier that will judge answers."""

import logging
import time
from collections.abc import Sequence

from megatron_entropic.config import RewardConfig, TaskConfig
from megatron_entropic.rollout.scoring import default_workers
from megatron_entropic.tasks import verifier_spec
from megatron_entropic.tasks.row_task import RowTask
from megatron_entropic.tasks.rows import PLAIN_NUMBER, DataRow
from megatron_entropic.tasks.verification import Limits, Verdict, VerifierPool

logger = logging.getLogger(__name__)

MOST = 20_000
"""Unlike answers that are given back; of more, evenly spread ones."""
_SAYS_SO_S = 10.0


def unreachable(task: RowTask, cfg: TaskConfig, seed: int, reward: RewardConfig) -> list[tuple[DataRow, str]]:
    """The rows whose known answer does not score 1 when it is given back, each with the reason, in the file's order.

    Given back as it is written, and in braces, which a verifier that compares letters cannot take for the same text.
    Raises VerifierError when the verifier cannot be made.
    """
    rows = _unlike(task.rows)
    spec = verifier_spec(cfg, seed, task)
    if not rows or spec is None:
        return []
    limits = Limits(reward.cpu_limit_s, reward.wall_limit_s, int(reward.memory_gb * 2**30))
    pool = VerifierPool(spec, limits, reward.workers or default_workers())
    try:
        pool.start()
        problems = [task.problem_of(row) for row in rows]
        as_written = [pool.submit(problem, task.response_of(row.answer)) for row, problem in zip(rows, problems, strict=True)]
        in_braces = [pool.submit(problem, task.response_of(f"{{{row.answer}}}")) for row, problem in zip(rows, problems, strict=True)]
        started, bad = time.monotonic(), []
        for number, (row, first, second) in enumerate(zip(rows, as_written, in_braces, strict=True)):
            if reason := _reason(row, first.result(), second.result()):
                bad.append((row, reason))
            if time.monotonic() - started > _SAYS_SO_S:
                started = time.monotonic()
                logger.info("%s: %d of %d answers checked", task.file.path, number + 1, len(rows))
        return bad
    finally:
        pool.close()


def _unlike(rows: Sequence[DataRow]) -> list[DataRow]:
    """The first row of each answer that is no plain number; at most MOST."""
    first: dict[str, DataRow] = {}
    for row in rows:
        if not PLAIN_NUMBER.fullmatch(row.answer):
            first.setdefault(row.answer, row)
    unlike = list(first.values())
    if len(unlike) <= MOST:
        return unlike
    return [unlike[number * len(unlike) // MOST] for number in range(MOST)]


def _reason(row: DataRow, as_written: Verdict, in_braces: Verdict) -> str:
    """The reason why no answer would be right; empty when one would."""
    for verdict in (as_written, in_braces):
        if verdict.outcome != "scored":
            return f"the answer {row.answer[:80]!r} cannot be compared: {verdict.reason}"
    return (
        ""
        if as_written.score == 1.0
        else f"the answer {row.answer[:80]!r} is wrong by its own measure: given back, it scores {as_written.score:g}"
    )
