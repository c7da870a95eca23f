"""The scores by hand and by brute force, and the command on a real model."""

import io
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.cli import main
from megatron_entropic.commands.evaluate import _settings
from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config, save_config
from megatron_entropic.evaluation.evaluate import evaluate
from megatron_entropic.evaluation.problems import choose_problems
from megatron_entropic.evaluation.progress import Counter
from megatron_entropic.evaluation.scores import avg_at_k, distinct_fraction, pass_at_k
from tests.command_line import megatron_entropic
from tests.tiny_models import TINY_DECOMPOSE


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(1, 4))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(rewards_PS: list[list[float]], k: int) -> None:
    subsets = [subset for rewards in rewards_PS for subset in itertools.combinations(rewards, k)]
    assert pass_at_k(rewards_PS, k) == pytest.approx(sum(1.0 in subset for subset in subsets) / len(subsets))


def test_scores_by_hand() -> None:
    rewards_PS = [[1.0, 0.0], [1.0, 1.0]]
    assert avg_at_k(rewards_PS) == 0.75
    assert distinct_fraction([["a", "b"], ["c", "c"]], rewards_PS) == pytest.approx(2 / 3)
    assert distinct_fraction([["a", "b"]], [[0.0, 0.0]]) == 0.0
    with pytest.raises(ValueError, match=r"pass@3 needs at least 3 samples"):
        pass_at_k(rewards_PS, 3)


@pytest.mark.slow
def test_the_tiny_model_scores_as_its_card_says(tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    outcome = megatron_entropic(
        "evaluate", str(TINY_DECOMPOSE), "--recipe", "quickstart", "rollout.engine=local", "--prompts", "128", "--out", str(out)
    )
    assert outcome.code == 0, outcome.output
    scores = json.loads(out.read_text())
    assert 0.75 < scores["avg"] < 0.92
    assert scores["pass_at"]["8"] > 0.97
    assert scores["surprisal"] == pytest.approx(0.87, abs=0.05)
    assert f"avg@8      {scores['avg']:.3f}" in outcome.output


def test_a_run_that_has_not_ended_says_how_its_model_is_written(tmp_path: Path) -> None:
    save_config(load_config("quickstart", [f"run.dir={tmp_path}"]), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=f"{tmp_path}/hf is not there: .*checkpoint_tools export {tmp_path} {tmp_path}/hf"):
        _settings(tmp_path, None, [])


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    outcome = megatron_entropic("evaluate", str(tmp_path / "none"))
    assert outcome.code == 2
    assert str(tmp_path / "none") in outcome.output
    assert "Traceback" not in outcome.output


def settings(*overrides: str) -> Config:
    words = ["rollout.engine=local", "parallel.tensor=1", "rollout.max_new_tokens=8", f"model.hf_path={TINY_DECOMPOSE}"]
    return load_config(None, [*words, "model.dtype=float32", "batch.samples_per_prompt=2", *overrides])


def rows(path: Path, count: int) -> str:
    path.write_text("".join(json.dumps({"prompt": f"{number}+1=", "answer": number + 1}) + "\n" for number in range(count)))
    return f"task.options.path={path}"


def test_no_row_of_a_file_is_taken_twice(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    cfg = settings("task.name=math", rows(tmp_path / "m.jsonl", 8), "task.options.prompt_template={prompt}")
    for wanted, taken in ((20, 8), (None, 8), (5, 5)):
        chosen = choose_problems(cfg, wanted, None)
        lines = [problem.data["line"] for problem in chosen.problems.values()]
        assert len(chosen.prompts) == len(set(lines)) == taken
        assert ("20 were asked for, 8 are there: each is taken once" in chosen.notes) == (wanted == 20)
    scores = evaluate(cfg, 20)
    assert (scores.prompts, scores.samples, scores.seen) == (8, 2, None)
    assert "whether the model was trained on these problems is not known here" in str(scores)


def test_what_was_trained_on_is_said(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    (tmp_path / "other").mkdir()
    mine, other = rows(tmp_path / "m.jsonl", 40), rows(tmp_path / "other" / "m.jsonl", 42)
    trained = settings("task.name=math", mine)
    assert choose_problems(trained, None, trained).seen == 40
    of_other = choose_problems(settings("task.name=math", other), None, trained)
    assert (of_other.seen, of_other.notes[-1].split(";")[0]) == (40, "not fresh: the run was trained on 40 of these 42")
    held = settings("task.name=math", mine, "task.options.test_fraction=0.3")
    tested = choose_problems(settings("task.name=math", mine, "task.options.test_fraction=0.3", "task.options.split=test"), None, held)
    assert (tested.seen, tested.notes[-1]) == (0, "none of them was trained on")
    assert 4 < len(tested.prompts) < 20
    assert evaluate(held, None, held).seen == 0


def test_repetitions_of_problems_made_by_rule_are_said() -> None:
    chosen = choose_problems(settings("task.name=decompose", "task.options.high=103"), 50, None)
    assert "4 of the 50 prompts are different: the others are repetitions, and are counted" in chosen.notes


def test_greedy_is_one_likeliest_response() -> None:
    cfg = settings("task.name=decompose", "rollout.temperature=0")
    first, again = evaluate(cfg, 16), evaluate(cfg, 16)
    assert first == again
    assert first.samples == 1
    assert first.avg > 0.8
    assert 0 < first.surprisal < math.log(99)
    assert "greedy" in str(first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "on which task\\? It is no run folder"),
        (["task.name=decompose", "--temperature", "0", "--samples", "2"], "--samples=2: with --temperature 0"),
        (["task.name=decompose", "--samples", "0"], "--samples=0: at least 1"),
        (["task.name=decompose", "--prompts", "0"], "--prompts=0: at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_once(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(TINY_DECOMPOSE), *words])
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_model_alone_gets_the_defaults_and_a_run_its_own_settings(tmp_path: Path) -> None:
    cfg, trained = _settings(TINY_DECOMPOSE, None, ["task.name=addition"])
    assert (cfg.task.name, cfg.rollout.max_new_tokens, cfg.model.hf_path, trained) == ("addition", 64, TINY_DECOMPOSE, None)
    run = tmp_path / "run #1"
    save_config(load_config("quickstart", ["trainer.seed=7"]), run / "config.yaml")
    shutil.copytree(TINY_DECOMPOSE, run / "hf")
    cfg, trained = _settings(run, None, [])
    assert (cfg.model.hf_path, cfg.run_dir, cfg.trainer.seed) == (run / "hf", run / "evaluation", 7)
    assert trained is not None
    with pytest.raises(ConfigError, match="on which task"):
        _settings(run / "hf", None, [])
    with pytest.raises(ValueError, match=r"exp #2/config\.json: no such file"):
        _settings(tmp_path / "exp #2", None, [])


def test_progress_is_told_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Counter(3, stream) as counter:
        for _ in range(3):
            counter.add(1)
        counter.reach(3)
    assert stream.getvalue() == "3 of 3 problems answered\n"
