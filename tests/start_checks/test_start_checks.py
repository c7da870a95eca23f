"""Problems found before a rank is started: data that cannot be learned, targets that cannot be reached, settings that train nothing."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.config.loading import load_config
from megatron_entropic.start_checks.data import check_data
from megatron_entropic.start_checks.golds import MOST, _unlike
from megatron_entropic.start_checks.learning import check_learning
from megatron_entropic.start_checks.start import check_start
from megatron_entropic.tasks.rows import DataRow
from tests.command_line import megatron_entropic

LOCAL = ("rollout.engine=local", "parallel.tensor=1")


def file(path: Path, *rows: tuple[str, Any]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows))
    return f"task.options.path={path}"


def remarks(*overrides: str) -> list[str]:
    return check_data(load_config("quickstart", [*LOCAL, "task.name=math", "task.options.prompt_template={prompt}", *overrides]))


def test_answers_that_can_be_given_back_are_remarked_on(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    rows = [("1+1=", 2), ("half", "\\frac{1}{2}"), ("solve", "\\{-2, 2\\}"), ("which", "(B)"), ("gsm", "one and one\n#### 1,002")]
    assert remarks(file(tmp_path / "m.jsonl", *rows)) == [f"{tmp_path}/m.jsonl: 5 problems, from the fields prompt and answer"]


def test_an_answer_that_no_verifier_reads_is_named_by_its_line(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    with pytest.raises(
        ValueError,
        match=r"m\.jsonl: 1 of 3 rows cannot be used: line 2: the answer '\\\\frac\{' says nothing that an answer could equal",
    ):
        remarks(file(tmp_path / "m.jsonl", ("1+1=", 2), ("How much?", "\\frac{"), ("3", "3")))


def test_prompts_that_are_too_long_are_refused_dropped_or_cut_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    path = file(tmp_path / "m.jsonl", ("1+1=", 2), ("x" * 600, 1), ("y" * 700, 1))
    with pytest.raises(
        ValueError, match=r"m\.jsonl: of the prompts, 2 with more than 496 tokens are too long \(line 2, 3\); lower rollout.max_new"
    ):
        remarks(path)
    assert remarks(path, "task.overlong_prompts=drop")[1] == "of the prompts, 2 with more than 496 tokens are left out (line 2, 3)"
    assert (
        remarks(path, "task.overlong_prompts=truncate")[1]
        == "of the prompts, 2 with more than 496 tokens are cut in their middle (line 2, 3)"
    )


def test_problems_made_by_rule_are_looked_at_too() -> None:
    cfg = load_config("quickstart", [*LOCAL, "rollout.max_new_tokens=510", "task.options.low=100000", "task.options.high=999999"])
    with pytest.raises(ValueError, match="problem 0 of the task has 7 tokens, 2 are left for a prompt"):
        check_data(cfg)


def test_of_very_many_answers_evenly_spread_ones_are_given_back() -> None:
    rows = [DataRow(number, "x", f"x_{number}") for number in range(MOST * 2)] + [DataRow(0, "x", "x_1"), DataRow(0, "x", "-12.50")]
    chosen = _unlike(rows)
    assert len(chosen) == MOST
    assert [row.number for row in chosen[:3]] == [0, 2, 4]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["control.target_entropy=-1"], "control.target_entropy=-1: an entropy is never below 0 nats"),
        (["control.target_entropy=10"], r"control.target_entropy=10: no policy over this vocabulary has more than 4\.60 nats"),
        (["control.target_points=[[10, 0.5], [20, 9]]"], "control.target_points, update 20=9: no policy"),
        (["control.target_points=[[10, -0.5]]"], "control.target_points, update 10=-0.5: an entropy is never below 0"),
        (["control.target_unit=initial", "control.target_entropy=-0.5"], "control.target_entropy=-0.5: an entropy is never"),
        (["control.kind=aec", "control.target_entropy=10"], "control.target_entropy=10: no policy"),
        (["control.steer_by=clamped_entropy", "control.clamp=0.9", "control.target_entropy=3"], r"has more than 2\.30 nats"),
        (["control.kind=aent", "control.entropy_low=5", "control.entropy_high=6"], "the clamped entropy lies between 0 and"),
        (["batch.samples_per_prompt=1"], "batch.samples_per_prompt=1 trains nothing: algorithm.advantage=grpo"),
        (["rollout.temperature=0"], "rollout.temperature=0 is greedy"),
    ],
)
def test_what_cannot_be_reached_or_learned_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_learning(load_config("quickstart", overrides), 99)


def test_what_can_be_is_not() -> None:
    for overrides in (
        ["control.target_entropy=0"],
        [f"control.target_entropy={math.log(99):.3f}"],
        ["control.kind=none"],
    ):
        check_learning(load_config("quickstart", overrides), 99)
    check_learning(load_config("quickstart", ["control.target_unit=initial", "control.target_entropy=10"]), 99)
    assert check_start(load_config("quickstart", [*LOCAL])) == []


def test_bad_data_ends_train_before_anything_is_made_and_doctor_says_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "m.jsonl").write_text('{"prompt": "a \\ud800 b", "answer": "1"}\n')
    words = ["quickstart", *LOCAL, "task.name=math", f"task.options.path={tmp_path}/m.jsonl", f"run.dir={tmp_path}/run"]
    for command in ("train", "doctor"):
        outcome = megatron_entropic(command, *words)
        assert outcome.code in (1, 2)
        assert f"{tmp_path}/m.jsonl: 1 of 1 rows cannot be used: line 1: field prompt holds half of a character" in outcome.output
        assert "Traceback" not in outcome.output
        assert not (tmp_path / "run").exists()
