"""What settings name outside the package is tried before anything is started: a mistake in it costs no servers."""

from pathlib import Path

import pytest

from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.start_checks.start import check_start

MINE = """
from megatron_entropic.control import Coefficients, ControlKind
class Fixed:
    def __init__(self, **state): self.state = state
    def coefficients(self): return self.state.get("found", Coefficients())
    def step(self, measured): pass
    def report(self): return {}
    def state_dict(self): return self.state
    def load_state_dict(self, state): pass
FORGETFUL = ControlKind("reads an option that is not there", lambda control, momentum: control.options["gain"])
NUMBER = ControlKind("gives a bare number", lambda control, momentum: Fixed(found=0.5))
UNSAVED = ControlKind("has no plain state", lambda control, momentum: Fixed(model=object()))
EMPTY = ControlKind("makes something else", lambda control, momentum: object())
def narrow(ratio_T, advantage_T): return -ratio_T * advantage_T
def wide(view): return 3 + 0 * view.log_prob_T
"""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("control.kind={}:FORGETFUL", "KeyError: 'gain', {}:10"),
        ("control.kind={}:NUMBER", r"coefficients\(\) gave float, not Coefficients"),
        ("control.kind={}:UNSAVED", r"state_dict\(\) cannot be saved as JSON: Object of type object"),
        ("control.kind={}:EMPTY", "what it makes, object, has no coefficients, no step"),
        ("algorithm.policy_loss={}:narrow", "TypeError: narrow.* got an unexpected keyword argument 'clip_low'"),
        ("control.actuator={}:wide", "returned 3; weights lie within -1 and 1"),
        ("trainer.trackers=[{}:gone]", "has no function gone"),
    ],
)
def test_a_mistake_is_named_with_its_setting(setting: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    cfg = load_config("quickstart", ["rollout.engine=local", "parallel.tensor=1", setting.format(file)])
    with pytest.raises(ValueError, match=rf"{setting.partition('=')[0]}={file}:.*{message.replace('{}', str(file))}"):
        check_start(cfg)


def test_an_engine_of_no_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, and a file is kept by its absolute path, so that a run resumes from anywhere."""
    with pytest.raises(ConfigError, match=r"rollout.engine='vlm': is none of .* did you mean 'vllm'"):
        load_config("quickstart", ["rollout.engine=vlm"])
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart", ["rollout.engine=mine.py:make"]).rollout.engine == f"{tmp_path}/mine.py:make"
