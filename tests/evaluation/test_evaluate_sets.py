"""`evaluate --sets` on a real model, and `--compare` on files, runs and what is neither."""

import json
from pathlib import Path

import pytest

from megatron_entropic.cli import main
from megatron_entropic.commands.evaluate_sets import chosen_sets
from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.evaluation.compare import compare
from megatron_entropic.evaluation.results import Results, results_at
from megatron_entropic.evaluation.set_scores import ProblemScores, SetScores
from megatron_entropic.evaluation.validation import write_scores
from tests.tiny_models import TINY_DECOMPOSE

ENGINE = ("rollout.engine=local", "parallel.tensor=1", "rollout.max_new_tokens=8", "batch.max_tokens_per_micro_batch=64")


def scores(name: str, rewards_PS: list[list[float]], temperature: float = 1.0, first: int = 0) -> SetScores:
    problems = tuple(
        ProblemScores(f"key{first + number}.0", "?", tuple(rewards), (1,) * len(rewards), 0.0, None)
        for number, rewards in enumerate(rewards_PS)
    )
    avg = sum(problem.avg for problem in problems) / len(problems)
    names = ("avg_low", "avg_high", "pass", "majority", "length", "truncated", "distinct")
    statistics = {"avg": avg, **dict.fromkeys(names, 0.0)}
    return SetScores(name, len(rewards_PS[0]), 1, temperature, 1.0, 8, statistics, problems)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words])
    printed = capsys.readouterr()
    return int(str(ended.value.code or 0)), printed.out + printed.err


def test_sets_of_a_model_are_scored_written_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine, #1.jsonl"
    file.write_text("".join(json.dumps({"question": f"{number}=", "answer": "7"}) + "\n" for number in range(300, 304)))
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    asked = ("--sets", "decompose", "--sets", f"mine={file}", "--prompts", "20")
    code, output = command(capsys, str(TINY_DECOMPOSE), *ENGINE, *asked, "--samples", "2", "--out", str(one))
    assert code == 0, output
    results = results_at(one)
    assert [(each.name, len(each.problems), each.samples) for each in results.sets] == [("decompose", 20, 2), ("mine", 4, 2)]
    assert results.sets[0].statistics["avg"] > 0.5
    assert results.sets[1].statistics["avg"] == 0.0
    assert f"{results.sets[0].statistics['avg']:.3f} (" in output
    code, output = command(
        capsys, str(TINY_DECOMPOSE), *ENGINE, *asked[:2], "--temperature", "0", "--prompts", "20", "--out", str(other)
    )
    assert code == 0, output
    code, output = command(capsys, "--compare", str(one), str(other), "--out", str(tmp_path / "verdict.json"))
    assert code == 0
    assert "They were not sampled alike: A T=1, top_p=1, at most 8 tokens; B T=0" in output
    verdict = json.loads((tmp_path / "verdict.json").read_text())["sets"][0]
    assert verdict["test"]["prompts"] == 20
    assert verdict["verdict"] in output


def test_a_clear_difference_is_called_and_a_small_one_is_not() -> None:
    worse, better = scores("x", [[0.0, 0.0]] * 12), scores("x", [[1.0, 1.0]] * 10 + [[0.0, 0.0]] * 2)
    (compared,) = compare(Results("a", (worse,)), Results("b", (better,)))
    assert (compared.verdict, compared.test.exact, compared.test.p_value) == ("B is better.", True, pytest.approx(2 / 2**10))
    (back,) = compare(Results("b", (better,)), Results("a", (worse,)))
    assert back.verdict == "A is better."
    (luck,) = compare(Results("a", (worse,)), Results("b", (scores("x", [[1.0, 0.0]] * 2 + [[0.0, 0.0]] * 10),)))
    assert "may be luck" in luck.verdict


def test_of_several_sets_one_that_is_clear_by_luck_is_not_called() -> None:
    base = {name: scores(name, [[0.0]] * 6) for name in "pqr"}
    others = {**base, "p": scores("p", [[1.0]] * 6)}
    alone = compare(Results("a", (base["p"],)), Results("b", (others["p"],)))
    together = compare(Results("a", tuple(base.values())), Results("b", tuple(others.values())))
    assert (alone[0].adjusted, alone[0].verdict) == (pytest.approx(2 / 2**6), "B is better.")
    assert together[0].adjusted == pytest.approx(3 * 2 / 2**6)
    assert "may be luck" in together[0].verdict


def test_problems_that_only_one_answered_are_left_out_and_said() -> None:
    (compared,) = compare(Results("a", (scores("x", [[1.0]] * 5),)), Results("b", (scores("x", [[1.0]] * 5, first=2),)))
    assert compared.test.prompts == 3
    assert "4 problems that only one answered are left out" in str(compared)
    with pytest.raises(ValueError, match="answered different problems"):
        compare(Results("a", (scores("x", [[1.0]]),)), Results("b", (scores("x", [[1.0]], first=9),)))
    with pytest.raises(ValueError, match="no set in common: a has x; b has y"):
        compare(Results("a", (scores("x", [[1.0]]),)), Results("b", (scores("y", [[1.0]]),)))


def test_runs_are_compared_by_their_last_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, right in (("a", 0.0), ("b", 1.0)):
        for step in (2, 10):
            write_scores(tmp_path / run / "validation" / "x" / f"step-{step:06d}.json", scores("x", [[right]] * 8), {"step": step})
    code, output = command(capsys, "--compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 0
    assert "a after 10 steps" in output
    assert "B is better." in output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        ("", "not JSON"),
        ("[]", "not what `megatron-entropic evaluate --sets` writes"),
        ('{"format": "megatron_entropic evaluation 1", "model": "m", "sets": [{"name": "x"}]}', "set 1: no scores of a set: samples"),
        ('{"format": "megatron_entropic evaluation 1", "model": "m", "sets": [7]}', "set 1: no scores of a set"),
    ],
)
def test_what_are_no_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str) -> None:
    path = tmp_path / "results #1.json"
    if content is not None:
        path.write_text(content)
    code, output = command(capsys, "--compare", str(path), str(path))
    assert code == 2
    assert str(path) in output
    assert message in output
    assert "Traceback" not in output


def test_sets_are_chosen_by_name_preset_or_file(tmp_path: Path) -> None:
    own = load_config(None, ["validation.sets=[{name: held, path: h.jsonl}, {name: aime24, path: own.jsonl}]"]).validation.sets
    (tmp_path / "a,b.jsonl").write_text("")
    chosen = chosen_sets(["held,aime24, math500", f"new={tmp_path / 'a,b.jsonl'}"], own)
    assert [each.path for each in chosen] == ["h.jsonl", "own.jsonl", "HuggingFaceH4/MATH-500", str(tmp_path / "a,b.jsonl")]
    (tmp_path / "t.jsonl").write_text("")
    mixed = chosen_sets([f"held,mine={tmp_path / 't.jsonl'}"], own)
    assert [each.name for each in mixed] == ["held", "mine"], "the file is there, under its own name alone"
    with pytest.raises(ConfigError, match="--sets hold: no set of the run and no preset; did you mean 'held'"):
        chosen_sets(["hold"], own)
    with pytest.raises(ConfigError, match=r"--sets: .*two sets are called held"):
        chosen_sets(["held,held=x.jsonl"], own)


def test_nothing_to_evaluate_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command(capsys, "--sets", "decompose")[0] == 2
    code, output = command(capsys, "--compare", str(tmp_path), str(tmp_path))
    assert code == 2
    assert "holds no scores on sets" in output
