"""The alarm on the log-prob gap: by dtype and staleness, the mean judged more strictly than the largest; on unless turned off."""

import math
from pathlib import Path

import pytest

from megatron_entropic.config import ModelConfig, RolloutConfig
from megatron_entropic.config.loading import load_config
from megatron_entropic.rollout.logprob_gap import likely_causes, stop_bounds, warn_bounds

NEVER = None
ROUNDING = {"float32": (1e-4, 1e-5), "bfloat16": (0.4, 0.02)}
"""(largest, mean) gap of right samplers, as measured."""
WRONG = {"another temperature": (1.0, 0.4), "another rotary scaling": (15.0, 4.0), "not a number": (math.nan, math.nan)}


def settings(*overrides: str) -> tuple[ModelConfig, RolloutConfig]:
    cfg = load_config("quickstart", ["run.dir=unused", *overrides])
    return cfg.model, cfg.rollout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_passes_and_a_wrong_sampler_ends_the_run(dtype: str) -> None:
    given = settings(f"model.dtype={dtype}")
    warn, stop = warn_bounds(*given, 5), stop_bounds(*given, 5)
    assert warn
    assert stop
    assert not warn.exceeded(*ROUNDING[dtype])
    assert not stop.exceeded(*(10 * value for value in ROUNDING[dtype]))
    for largest, mean in WRONG.values():
        assert warn.exceeded(largest, mean)
        assert stop.exceeded(largest, mean)


def test_a_gap_that_float32_does_not_have_is_rounding_in_bfloat16() -> None:
    for bounds in (warn_bounds, stop_bounds):
        single, half = bounds(*settings(), 0), bounds(*settings("model.dtype=bfloat16"), 0)
        assert single
        assert half
        assert single.exceeded(0.1, 0.02)
        assert not half.exceeded(0.1, 0.02)


def test_stale_rollouts_may_differ_by_what_was_learned_since_but_those_of_the_first_step_may_not() -> None:
    given = settings("rollout.max_staleness=2")
    gap = (6.0, 0.2)
    for bounds in (warn_bounds, stop_bounds):
        at = [bounds(*given, step) for step in range(4)]
        assert [bound is not None and bound.exceeded(*gap) for bound in at] == [True, False, False, False]
        assert [bound is not None and bound.exceeded(9.0, 1.0) for bound in at] == [True] * 4
        assert at[2] == at[3]


@pytest.mark.parametrize(
    ("setting", "stops_at_half", "warns_at_half"), [("auto", True, True), ("0", False, False), ("0.4", True, True), ("2", False, True)]
)
def test_the_limit_is_a_number_for_any_token_or_automatic_or_off(setting: str, stops_at_half: bool, warns_at_half: bool) -> None:
    given = settings(f"rollout.max_logprob_gap={setting}")
    stop, warn = stop_bounds(*given, 0), warn_bounds(*given, 0)
    assert (stop is not NEVER and stop.exceeded(0.5, 0.5)) == stops_at_half
    assert (warn is not NEVER and warn.exceeded(0.5, 0.5)) == warns_at_half


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_logprob_gap"):
        settings("rollout.max_logprob_gap=-1")


def test_a_recording_may_be_of_another_policy(tmp_path: Path) -> None:
    given = settings("rollout.engine=replay", f"rollout.replay_path={tmp_path}")
    assert stop_bounds(*given, 3) is NEVER
    assert "a recording of another policy" in likely_causes(*given, 3)


def test_causes_are_those_of_the_settings() -> None:
    given = settings("model.dtype=bfloat16", "rollout.max_staleness=1", "rollout.server_args=[--dtype, half]")
    assert "rollout.max_staleness=1" not in likely_causes(*given, 0)
    causes = likely_causes(*given, 1)
    assert all(part in causes for part in ("rollout.max_staleness=1", "server_args=--dtype half", "model.dtype=float32", "config.json"))
