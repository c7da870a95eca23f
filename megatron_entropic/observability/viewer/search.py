"""Search in the index: what a user types and chooses, as one SQL query. Results are prompts, each with its samples of one step."""

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from megatron_entropic.observability.report_samples import escaped
from megatron_entropic.observability.viewer.index import Index, storable

PAGE = 50
"""Results of one page."""
ORDERS = {
    "step": "step, prompt_index",
    "newest": "step DESC, prompt_index",
    "reward": "mean_reward, step, prompt_index",
    "reward_down": "mean_reward DESC, step, prompt_index",
    "spread": "max(reward) - min(reward) DESC, step, prompt_index",
    "length": "max(length) DESC, step, prompt_index",
}
_TRIGRAM = 3
_SNIPPET = 240


@dataclass(frozen=True)
class Filters:
    """What to look for; None is any. Steps count from 1, for people. `prompt` is a prompt's index, `same` its id in the index.

    `text`: part of a prompt, or words of a response in any order; words between quotes stand together.
    """

    text: str = ""
    where: str = "anywhere"
    step_from: float | None = None
    step_to: float | None = None
    reward_from: float | None = None
    reward_to: float | None = None
    length_from: float | None = None
    length_to: float | None = None
    prompt: float | None = None
    same: float | None = None

    @classmethod
    def read(cls, asked: Mapping[str, str]) -> "Filters":
        """From a query's parameters; empty ones count as not given. Raises ValueError naming one that is no number."""
        found: dict[str, Any] = {}
        for field in fields(cls):
            value = asked.get(field.name, "").strip()
            if not value:
                continue
            found[field.name] = value if field.name in ("text", "where") else _number(field.name, value)
        if found.get("where", cls.where) not in ("anywhere", "prompt", "response"):
            raise ValueError(f"where={found['where']}: one of anywhere, prompt, response")
        return cls(**found)


def search(index: Index, filters: Filters, order: str = "step", page: int = 0) -> dict[str, Any]:
    """One page of results and how many there are: prompts of a step of which a sample fits. Raises ValueError for an unknown order."""
    if order not in ORDERS:
        raise ValueError(f"order={order}: one of {', '.join(ORDERS)}")
    condition, values = _condition(filters)
    with index.connected() as connection:
        groups, rollouts = connection.execute(
            "SELECT count(*), coalesce(sum(n), 0) FROM "
            f"(SELECT count(*) AS n FROM rollouts WHERE {condition} GROUP BY step, prompt_index)",
            values,
        ).fetchone()
        found = connection.execute(
            "SELECT step, prompt_index, prompt_id, count(*), avg(reward) AS mean_reward, min(length), max(length) FROM rollouts "
            f"WHERE {condition} GROUP BY step, prompt_index ORDER BY {ORDERS[order]} LIMIT {PAGE} OFFSET ?",
            (*values, PAGE * page),
        ).fetchall()
        results = [_result(connection, row) for row in found]
    return {"groups": groups, "rollouts": rollouts, "page": page, "pages": -(-groups // PAGE), "results": results}


def matching_samples(index: Index, filters: Filters, step: int, prompt_index: int) -> list[int]:
    """The samples of a prompt that fit, by index."""
    condition, values = _condition(filters)
    query = f"SELECT sample_index FROM rollouts WHERE step = ? AND prompt_index = ? AND {condition} ORDER BY sample_index"
    with index.connected() as connection:
        return [int(row[0]) for row in connection.execute(query, (step, prompt_index, *values))]


def other_steps(index: Index, step: int, prompt_index: int) -> tuple[int | None, list[tuple[int, int]]]:
    """The id of a prompt's text, and (step, prompt index) of all places that it was drawn at."""
    with index.connected() as connection:
        row = connection.execute("SELECT prompt_id FROM rollouts WHERE step = ? AND prompt_index = ?", (step, prompt_index)).fetchone()
        if row is None:
            return None, []
        query = "SELECT DISTINCT step, prompt_index FROM rollouts WHERE prompt_id = ? ORDER BY step, prompt_index LIMIT 200"
        return int(row[0]), [(int(place[0]), int(place[1])) for place in connection.execute(query, row)]


def _result(connection: sqlite3.Connection, row: tuple[Any, ...]) -> dict[str, Any]:
    step, prompt_index, prompt_id, samples, mean_reward, shortest, longest = row
    text = connection.execute("SELECT substr(text, 1, ?) FROM prompts WHERE id = ?", (_SNIPPET, prompt_id)).fetchone()[0]
    rewards = connection.execute(
        "SELECT reward FROM rollouts WHERE step = ? AND prompt_index = ? ORDER BY sample_index LIMIT 64", (step, prompt_index)
    )
    return {
        "step": step,
        "prompt_index": prompt_index,
        "prompt": escaped(text),
        "samples": samples,
        "reward": mean_reward,
        "shortest": shortest,
        "longest": longest,
        "rewards": [reward[0] for reward in rewards],
    }


def _condition(filters: Filters) -> tuple[str, list[Any]]:
    """A WHERE clause without user's text in it, and the values of its question marks."""
    parts: list[str] = []
    values: list[Any] = []
    for column, low, high in (
        ("step + 1", filters.step_from, filters.step_to),
        ("reward", filters.reward_from, filters.reward_to),
        ("length", filters.length_from, filters.length_to),
        ("prompt_index", filters.prompt, filters.prompt),
        ("prompt_id", filters.same, filters.same),
    ):
        for sign, bound in ((">=", low), ("<=", high)):
            if bound is not None:
                parts.append(f"{column} {sign} ?")
                values.append(bound)
    if text := storable(filters.text).strip():
        either = []
        if filters.where != "response":
            clause, value = _prompt_clause(text)
            either.append(clause)
            values.append(value)
        if filters.where != "prompt":
            either.append("id IN (SELECT rowid FROM response_words WHERE response_words MATCH ?)")
            values.append(_words(text))
        parts.append(f"({' OR '.join(either)})")
    return " AND ".join(parts) or "1", values


def _prompt_clause(text: str) -> tuple[str, str]:
    """Prompts with this text in them: by its trigrams, or by looking at all where it is too short to have one."""
    if len(text) < _TRIGRAM:
        return "prompt_id IN (SELECT id FROM prompts WHERE instr(lower(text), lower(?)))", text
    return "prompt_id IN (SELECT rowid FROM prompt_parts WHERE prompt_parts MATCH ?)", _quoted(text.strip('"'))


def _words(text: str) -> str:
    """Every word, or quoted phrase, of the text; all of them must be there. A star behind a word stands for its endings."""
    found = []
    for phrase, word in re.findall(r'"([^"]*)"?|(\S+)', text):
        star = "*" if word.endswith("*") and len(word) > 1 else ""
        found.append(_quoted(phrase or word.rstrip("*") or word) + star)
    return " ".join(found)


def _quoted(text: str) -> str:
    """As a string of FTS5's query language, in which nothing but the quote means anything."""
    return '"' + text.replace('"', '""') + '"'


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"{name}={value}: not a number") from error
