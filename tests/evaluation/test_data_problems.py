"""Problems of an evaluation over the data task: what was held out, each once."""

import json
from pathlib import Path

import pytest

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.evaluation.evaluate import _for_evaluation
from megatron_entropic.evaluation.problems import choose_problems


@pytest.fixture
def trained(tmp_path: Path) -> Config:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}+1=", "answer": n + 1}) + "\n" for n in range(100)))
    source = f"data.train={{path: '{path}', verifier: exact}}"
    return load_config("quickstart", ["rollout.engine=local", "parallel.tensor=1", "task.name=data", "data.held_out=0.3", source])


def test_what_was_held_out_is_asked_once_and_was_not_trained_on(trained: Config) -> None:
    cfg = _for_evaluation(trained)
    chosen = choose_problems(cfg, None, trained)
    prompts = [problem.prompt for problem in chosen.problems.values()]
    assert 15 < len(set(prompts)) == len(prompts) < 45
    assert prompts != sorted(prompts)
    assert chosen.seen == 0
    assert len(choose_problems(cfg, 5, trained).prompts) == 5
    assert f"999 were asked for, {len(prompts)} are there: each is taken once" in choose_problems(cfg, 999, trained).notes


def test_rows_that_were_trained_on_are_counted(trained: Config) -> None:
    chosen = choose_problems(trained, None, trained)
    assert chosen.seen == len(chosen.prompts)
    assert "for fresh ones name another file by data.train" in chosen.notes[-1]
