"""Fixtures of the observability tests."""

from functools import partial
from pathlib import Path

import pytest

from tests.observability.synthetic_runs import MakeRun, make_run_dir


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(name, kind=, steps=, planned=, text=) -> the folder of a run with `steps` of `planned` steps done."""
    return partial(make_run_dir, tmp_path)
