"""The scores by hand and by brute force, and the command on a real model."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.evaluation.scores import avg_at_k, distinct_share, pass_at_k
from tests.command_line import megatron_entropic
from tests.tiny_models import TINY_DECOMPOSE


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(1, 4))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(rewards_PS: list[list[float]], k: int) -> None:
    subsets = [subset for rewards in rewards_PS for subset in itertools.combinations(rewards, k)]
    assert pass_at_k(rewards_PS, k) == pytest.approx(sum(1.0 in subset for subset in subsets) / len(subsets))


def test_scores_by_hand() -> None:
    rewards_PS = [[1.0, 0.0], [1.0, 1.0]]
    assert avg_at_k(rewards_PS) == 0.75
    assert distinct_share([["a", "b"], ["c", "c"]], rewards_PS) == pytest.approx(2 / 3)
    assert distinct_share([["a", "b"]], [[0.0, 0.0]]) == 0.0
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


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    outcome = megatron_entropic("evaluate", str(tmp_path / "none"))
    assert outcome.code == 2
    assert str(tmp_path / "none") in outcome.output
    assert "Traceback" not in outcome.output
