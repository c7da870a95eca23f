"""Sets of problems as they are opened: which problems, in what room, and what of them keeps a run from starting."""

import json
from pathlib import Path

import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.evaluation.sets import OpenSet, open_set
from megatron_entropic.start_checks.validation import check_validation
from megatron_entropic.tasks import make_task


def settings(sets: str, *more: str) -> Config:
    return load_config("quickstart", ["rollout.engine=local", "validation.every=2", f"validation.sets={sets}", *more])


def opened(sets: str, *more: str) -> OpenSet:
    cfg = settings(sets, *more)
    return open_set(cfg, cfg.validation.sets[0])


def rows(path: Path, count: int, **last: object) -> Path:
    lines = [{"question": f"{number}+1=", "answer": str(number + 1)} for number in range(count)]
    lines += [last] if last else []  # type: ignore[list-item]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_problems_of_a_task_are_others_than_those_of_training_and_the_same_in_every_run() -> None:
    first, again = opened("[decompose]"), opened("[decompose]", "trainer.seed=7")
    assert len(first.prompts) == 64
    assert [prompt.text for prompt in first.prompts] == [prompt.text for prompt in again.prompts]
    assert first.sampling == again.sampling
    cfg = settings("[decompose]")
    trained = make_task(cfg.task, cfg.trainer.seed)
    assert [prompt.text for prompt in first.prompts] != [trained.problem(index).prompt for index in range(64)]
    other = opened("[{name: other, task: decompose, limit: 5}]")
    assert len(other.prompts) == 5
    assert other.sampling.seed != first.sampling.seed


def test_a_file_is_asked_once_in_its_order(tmp_path: Path) -> None:
    path = rows(tmp_path / "a #1 b.jsonl", 6)
    whole = opened(f"[{{name: held, path: '{path}', verifier: exact, max_new_tokens: 5, temperature: 0.7, top_p: 0.9}}]")
    assert [prompt.text for prompt in whole.prompts] == [f"{number}+1=" for number in range(6)]
    assert (whole.sampling.temperature, whole.sampling.top_p, whole.sampling.max_new_tokens) == (0.7, 0.9, 5)
    few = opened(f"[{{name: held, path: '{path}', verifier: exact, limit: 2}}]")
    assert [prompt.index for prompt in few.prompts] == [0, 1]
    filtered = opened(f"[{{name: held, path: '{path}', verifier: exact, filter: 'answer == \"3\"'}}]")
    assert [prompt.text for prompt in filtered.prompts] == ["2+1="]


def test_a_set_that_names_nothing_is_what_the_runs_data_holds_out(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", 60)
    data = ("task.name=data", f"data.train=[{{path: '{path}', verifier: exact}}]", "data.held_out=0.3")
    held = {prompt.text for prompt in opened("[{name: held}]", *data).prompts}
    cfg = settings("[{name: held}]", *data)
    task = make_task(cfg.task, 0, cfg.data)
    trained = {task.problem(index).prompt for index in range(200)}
    assert held.isdisjoint(trained)
    assert len(held | trained) == 60
    with pytest.raises(ConfigError, match=r"^validation\.sets, set held: part=held_out needs data\.held_out, such as 0\.1$"):
        opened(f"[{{name: held, path: '{path}', verifier: exact, part: held_out}}]", *data[:2])
    with pytest.raises(ConfigError, match=r"set held: names neither path nor task.*set data\.held_out"):
        opened("[{name: held}]", *data[:2])


def test_bad_rows_are_refused_or_left_out_and_said(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", 3, question="why?", answer=" ")
    with pytest.raises(ConfigError, match=rf"validation\.sets, set held: .*{path}"):
        opened(f"[{{name: held, path: '{path}', verifier: exact}}]")
    left = opened(f"[{{name: held, path: '{path}', verifier: exact, bad_rows: leave_out}}]")
    assert len(left.prompts) == 3
    assert left.remark.startswith("1 of 4 problems are left out: ")
    cfg = settings(f"[{{name: held, path: '{path}', verifier: exact, bad_rows: leave_out}}]")
    assert check_validation(cfg)[0].startswith("validation on held: 3 problems x 4 samples; 1 of 4 problems are left out")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("[{name: a, path: /nowhere/f.jsonl}]", "set a: .*/nowhere/f.jsonl: no such file"),
        ("[{name: a, task: decompose, max_new_tokens: 90000}]", "set a: .*max_new_tokens=90000 leaves no room"),
        ("[{name: a, task: addition, options: {low: 5, high: 1}}]", "set a: .*high"),
        ("[{name: a, task: reasoning_gym, options: {dataset: chain_sums}}]", "set a: .*did you mean 'chain_sum'"),
    ],
)
def test_what_cannot_be_read_ends_the_run_before_it_starts(sets: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_validation(settings(sets))


def test_an_empty_file_and_a_prompt_without_room_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"set a: .*empty\.jsonl"):
        opened(f"[{{name: a, path: '{tmp_path / 'empty.jsonl'}'}}]")
    path = rows(tmp_path / "long.jsonl", 2, question="1" * 5000, answer="1")
    with pytest.raises(ConfigError, match=r"set a: problem 2 has 5000 tokens.*lower it, raise batch|set a: .*long\.jsonl"):
        opened(f"[{{name: a, path: '{path}', verifier: exact}}]")


def test_a_run_without_validation_reads_no_set() -> None:
    assert check_validation(load_config("quickstart", ["validation.sets=[{name: a, path: /nowhere}]"])) == []
