"""Prompts that are too long: found without tokenizing everything, left out for good, or cut in their middle."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.config import BatchConfig, Config, ModelConfig, RolloutConfig, TaskConfig
from megatron_entropic.rollout.prompt_encoder import PromptEncoder
from megatron_entropic.rollout.prompts import PromptStream, make_stream, prompt_room
from megatron_entropic.tasks.math import known_answer
from megatron_entropic.tasks.row_task import RowTask
from megatron_entropic.tasks.rows import read_rows
from megatron_entropic.tasks.task import Problem
from tests.tiny_models import TINY_DECOMPOSE

ENCODER = PromptEncoder(TINY_DECOMPOSE, chat_template=False)


class Rows(RowTask):
    """A task over a file in which nothing is right."""

    def score(self, problem: Problem, response: str) -> float:
        return 0.0


def rows(path: Path, prompts: list[str]) -> RowTask:
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "1"}) + "\n" for prompt in prompts))
    return Rows(read_rows(path, prompt_field="", answer_field="", known_answer=known_answer), "{prompt}", 0)


class Growing:
    """Problem i is a text of i % 10 characters beyond 10."""

    def problem(self, index: int) -> Problem:
        return Problem("x" * (10 + index % 10))

    def score(self, problem: Problem, response: str) -> float:
        return 0.0


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.integers(1, 60))
def test_fits_says_what_the_tokenizer_says(text: str, room: int) -> None:
    assert ENCODER.fits(text, room) == (ENCODER.length(text) <= room)


@given(st.text(st.sampled_from("0123456789+=ab"), min_size=20, max_size=60), st.integers(3, 15))
def test_a_cut_text_fits_and_keeps_both_ends(text: str, room: int) -> None:
    cut = ENCODER.cut(text, room)
    assert ENCODER.length(cut) == room
    assert text.startswith(cut[: room // 2])
    assert text.endswith(cut[-(room // 2) :])


def test_dropped_rows_are_never_asked_and_the_others_once_an_epoch(tmp_path: Path) -> None:
    task = rows(tmp_path / "x.jsonl", ["x" * n for n in (5, 30, 6, 40, 7)])
    stream = PromptStream(task, ENCODER, prompts_per_step=3, room=20, overlong="drop")
    assert [row.number for row in stream.dropped] == [2, 4]
    for step in range(2):
        assert sorted(problem.data["line"] for problem in stream.step(step)[1].values()) == [1, 3, 5]
    with pytest.raises(ValueError, match=r"x\.jsonl: none of its 3 rows is left"):
        PromptStream(task, ENCODER, prompts_per_step=3, room=2, overlong="drop")


def test_a_problem_made_by_rule_is_replaced_by_one_that_fits() -> None:
    stream = PromptStream(Growing(), ENCODER, prompts_per_step=10, room=15, overlong="drop")
    prompts, problems = stream.step(0)
    assert [prompt.index for prompt in prompts] == list(range(10))
    assert all(len(prompt.token_ids) <= 15 and prompt.text == problems[prompt.index].prompt for prompt in prompts)
    assert prompts == stream.step(0)[0]
    with pytest.raises(ValueError, match="100 problems in a row have more than 5 tokens"):
        PromptStream(Growing(), ENCODER, prompts_per_step=10, room=5, overlong="drop").step(0)


def test_truncated_prompts_fit() -> None:
    prompts, _ = PromptStream(Growing(), ENCODER, prompts_per_step=10, room=15, overlong="truncate").step(0)
    assert [len(prompt.token_ids) for prompt in prompts] == [10, 11, 12, 13, 14, *[15] * 5]


def test_the_room_is_what_context_and_micro_batch_leave() -> None:
    model = ModelConfig(hf_path=TINY_DECOMPOSE)
    assert prompt_room(model, BatchConfig(max_tokens_per_micro_batch=100), RolloutConfig(max_new_tokens=16)) == 84
    with pytest.raises(ValueError, match=r"rollout\.max_new_tokens=512 leaves no room for a prompt in 512 tokens"):
        prompt_room(model, BatchConfig(max_tokens_per_micro_batch=999), RolloutConfig(max_new_tokens=512))


def test_a_chat_template_that_is_not_there_is_one_error() -> None:
    cfg = Config(model=ModelConfig(hf_path=TINY_DECOMPOSE), task=TaskConfig(chat_template=True))
    with pytest.raises(ValueError, match=r"task\.chat_template=true, but the tokenizer of .* has no chat template"):
        make_stream(cfg, Growing(), prompts_per_step=1).step(0)
