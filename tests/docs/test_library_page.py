"""docs/library.md: its code runs as it stands, needs no more than it says, and shows what the text says."""

import re
import subprocess
import sys

import pytest

from megatron_entropic.config import ControlConfig
from megatron_entropic.control import Measurement, Steering
from tests.command_line import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), flags=re.DOTALL)
CHECKS = """
import sys
assert not {"megatron", "vllm", "transformers"} & set(sys.modules), "the page says that it needs PyTorch alone"
assert 0.75 < plain[-1] < 0.81
assert abs(sum(held[-50:]) / 50 - 1.6) < 0.05
assert abs(sum(steered[-50:]) / 50 - 1.6) < 0.02
assert steering.report()["gains_tuned"]
"""


def test_the_code_runs_and_holds_the_entropy() -> None:
    assert len(BLOCKS) == 3
    code = "\n".join(["import torch; torch.set_num_threads(1)", *BLOCKS, CHECKS])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = r"plain 0\.7\d nats; EntroPIC 1\.6\d with alpha -0\.\d\d\n1\.60 nats; gains tuned: True\n$"
    assert re.search(said, done.stdout), done.stdout


def test_a_measurement_cannot_leave_out_what_updates_are_counted_by() -> None:
    with pytest.raises(TypeError, match="version"):
        Measurement(0.5)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="version=3, executed=2"):
        Measurement(0.5, version=3, executed=2)


def test_what_was_not_measured_hands_nothing_over() -> None:
    """A target far above: alpha goes to its limit, and the bonus, of which nothing is known, stays at 0."""
    steering = Steering(ControlConfig(target_entropy=2.0, probe_updates=0, gains="fixed"), 0.9)
    for step in range(30):
        steering.step(Measurement(0.5, version=step, executed=step + 1))
    assert (steering.coefficients().alpha, steering.coefficients().bonus) == (-1.0, 0.0)
    with pytest.raises(ValueError, match="no clamped_entropy"):
        Steering(ControlConfig(steer_by="clamped_entropy"), 0.9).step(Measurement(0.5, version=0, executed=1))
