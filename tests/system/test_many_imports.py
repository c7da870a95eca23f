"""Starts and ends of processes that import much."""

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.system.many_imports import many_imports
from tests.command_line import ROOT

ENDING = """
import atexit, logging, sys
from megatron_entropic.system.many_imports import end_process
class Whole:
    def __del__(self): print("taken apart")
kept = Whole()
logging.basicConfig(filename=sys.argv[1])
atexit.register(print, "exit function")
logging.warning("logged")
print("said", end="")
end_process(7)
"""
WITHOUT_COMPILER = """
import sys
from megatron_entropic.platform import import_megatron
import torch
compiler = torch.compile
import_megatron()
import_megatron()
assert torch.compile is compiler
from megatron.core.fusions.fused_bias_swiglu import swiglu
print(swiglu(torch.tensor([[2.0, 3.0]])).tolist(), [name for name in ("wandb", "torch._dynamo", "networkx") if name in sys.modules])
import wandb
print(wandb.__name__)
"""


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_and_is_left_as_it_was(enabled: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with many_imports():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(ImportError, match="no_such_package"), many_imports():
            importlib.import_module("no_such_package")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_a_process_ends_at_once_with_everything_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", ENDING, str(log)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "saidexit function\n", "")
    assert "logged" in log.read_text()


def test_megatron_core_is_imported_without_a_compiler_that_is_never_used() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], cwd=ROOT, capture_output=True, text=True, check=True)
    value, modules = done.stdout.splitlines()[0].split("]] ")
    assert float(value.strip("[")) == pytest.approx(5.2848, abs=1e-4)  # 2 sigmoid(2) * 3
    assert (modules, done.stdout.splitlines()[1]) == ("[]", "wandb")
