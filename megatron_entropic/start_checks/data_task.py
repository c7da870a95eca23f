"""The rows of a run's data sources, looked at before it starts: can they be read, do they fit, would the known answer be right?"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.rollout.prompts import PromptStream
from megatron_entropic.rollout.scoring import default_workers
from megatron_entropic.tasks import verifier_spec
from megatron_entropic.tasks.data import DataTask
from megatron_entropic.tasks.data.judging import verifier_for
from megatron_entropic.tasks.data.source import SourceRows
from megatron_entropic.tasks.rows import PLAIN_NUMBER
from megatron_entropic.tasks.task import Problem
from megatron_entropic.tasks.verification import Limits, Verdict, VerifierPool

logger = logging.getLogger(__name__)

MOST_ROWS = 20_000
"""Rows of a source that are looked at; of more, evenly spread ones."""
MOST_ANSWERS = 2_000
"""Unlike answers of a source that are given back to their verifier."""
_SHOWN = 5


@dataclass
class _Looked:
    """Rows of a source: how many were looked at, what is wrong with some, and one of each answer with where it stands."""

    rows: int = 0
    bad: list[str] = field(default_factory=list)
    long: list[str] = field(default_factory=list)
    boxed: bool = False
    problems: dict[str, tuple[str, Problem]] = field(default_factory=dict)


def check_data_task(cfg: Config, task: DataTask, stream: PromptStream, seed: int) -> list[str]:
    """Remarks, a line each: what the sources are, and what becomes of prompts that are too long.

    Raises ConfigError naming file and row of what cannot be used, and of known answers that their own verifier does not accept.
    """
    remarks: list[str] = []
    looked = [_look(rows, stream) for rows in task.sources]
    for rows, seen in zip(task.sources, looked, strict=True):
        if seen.bad:
            raise ConfigError(
                f"{rows.store.path}: {len(seen.bad)} of the {seen.rows} rows looked at cannot be used: {_listed(seen.bad)}"
            )
        remarks += [str(rows), *_lengths(rows, seen, stream), *_boxes(rows, seen)]
    remarks += _held_out(cfg)
    refused = _refused(cfg, task, seed, [pair for seen in looked for pair in seen.problems.values()])
    if refused:
        raise ConfigError(f"{len(refused)} known answers are wrong by their own measure: {_listed(refused)}")
    return remarks


def _look(rows: SourceRows, stream: PromptStream) -> _Looked:
    seen = _Looked()
    count = len(rows)
    places = range(count) if count <= MOST_ROWS else (number * count // MOST_ROWS for number in range(MOST_ROWS))
    for index in map(rows.index, places):
        seen.rows += 1
        try:
            problem = rows.problem(index)
            fits = stream.encoder.fits(problem, stream.room)
        except ValueError as error:
            seen.bad.append(str(error).removeprefix(f"{rows.store.path}, "))
            continue
        if not fits:
            seen.long.append(rows.store.where(index).removeprefix(f"{rows.store.path}, "))
        asked = (problem.prompt, *(message["content"] for message in problem.messages))
        seen.boxed = seen.boxed or any("boxed" in text or "####" in text for text in asked)
        answer = problem.data["answer"]
        if len(seen.problems) < MOST_ANSWERS and not PLAIN_NUMBER.fullmatch(answer):
            seen.problems.setdefault(json.dumps([problem.data["verifier"], answer], sort_keys=True), (rows.store.where(index), problem))
    return seen


def _lengths(rows: SourceRows, seen: _Looked, stream: PromptStream) -> list[str]:
    if not seen.long:
        return []
    shown = f"{', '.join(seen.long[:_SHOWN])}{', ...' if len(seen.long) > _SHOWN else ''}"
    counted = f"of {seen.rows} prompts looked at, {len(seen.long)} with more than {stream.room} tokens"
    if stream.overlong == "refuse":
        raise ConfigError(
            f"{rows.store.path}: {counted} are too long ({shown}); lower rollout.max_new_tokens, raise "
            "batch.max_tokens_per_micro_batch, set data.max_prompt_tokens, or say task.overlong_prompts=drop or truncate"
        )
    return [f"{rows.store.path}: {counted} are cut in their middle ({shown})"]


def _boxes(rows: SourceRows, seen: _Looked) -> list[str]:
    """A hint where answers are read from boxes, or after ####, and no prompt speaks of either."""
    if seen.boxed or not any(
        problem.data["verifier"]["name"] == "math" for _, problem in seen.problems.values() or [("", _first(rows))]
    ):
        return []
    return [
        f"{rows.store.path}: no prompt asks for the answer in \\boxed{{...}}, where the verifier math reads it; if the model does not "
        f"write so by itself: prompt_template of {rows.name}, such as '{{prompt}} Put your final answer within \\boxed{{}}.'"
    ]


def _first(rows: SourceRows) -> Problem:
    return rows.problem(rows.index(0))


def _held_out(cfg: Config) -> list[str]:
    """What is held out of training, where something is."""
    fraction = cfg.data.held_out
    return [f"data.held_out={fraction:g}: about that fraction of the prompts, by their hash, is never trained on"] if fraction else []


def _refused(cfg: Config, task: DataTask, seed: int, answers: Sequence[tuple[str, Problem]]) -> list[str]:
    """Where the known answers stand that do not score 1 when they are given back, each with the reason.

    Only of verifiers that say what a response with an answer looks like (`response_of`).
    """
    asked = [(where, problem, response) for where, problem in answers if (response := _response(problem)) is not None]
    spec = verifier_spec(cfg.task, seed, task)
    if not asked or spec is None:
        return []
    reward = cfg.reward
    limits = Limits(reward.cpu_limit_s, reward.wall_limit_s, int(reward.memory_gb * 2**30))
    pool = VerifierPool(spec, limits, reward.workers or default_workers())
    try:
        pool.start()
        verdicts = [pool.submit(problem, response) for _, problem, response in asked]
        reasons = [(where, _reason(problem, verdict.result())) for (where, problem, _), verdict in zip(asked, verdicts, strict=True)]
    finally:
        pool.close()
    return [f"{where}: {reason}" for where, reason in reasons if reason]


def _response(problem: Problem) -> str | None:
    response_of = getattr(verifier_for(problem.data["verifier"]), "response_of", None)
    return None if response_of is None else str(response_of(problem.data["answer"]))


def _reason(problem: Problem, verdict: Verdict) -> str:
    answer = f"the answer {problem.data['answer'][:80]!r}"
    if verdict.outcome != "scored":
        return f"{answer} cannot be judged: {verdict.reason}"
    return "" if verdict.score == 1.0 else f"{answer} scores {verdict.score:g} when it is given back"


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
