"""`megatron-entropic plan` as a user runs it: fast, without torch, and with one clear line for what cannot be."""

import subprocess
import sys
import time

import pytest

from megatron_entropic.commands.plan import plan
from tests.command_line import ROOT, megatron_entropic
from tests.planning.sites import LLAMA_70B

WITHOUT_TORCH = """
import builtins, sys
real = builtins.__import__
def guarded(name, *args, **kwargs):
    if name.split(".")[0] in ("torch", "megatron", "transformers", "vllm", "numpy"):
        raise ImportError(f"planning imported {name}")
    return real(name, *args, **kwargs)
builtins.__import__ = guarded
from megatron_entropic.cli import main
main(["plan", "quickstart", *sys.argv[1:], "--gpus", "128"])
"""


def test_a_70b_plan_takes_seconds_and_neither_torch_nor_a_model() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *LLAMA_70B], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 10
    for heading in (
        "Memory of a training GPU",
        "Memory of a rollout GPU",
        "Communication of a step",
        "Time of a step",
        "Layouts that fit, fastest first",
        "Layouts that do not fit",
        "Assumptions",
    ):
        assert heading in done.stdout
    for word in ("parameters", "gradients", "optimizer", "activations", "LM head", "KV cache", "bucket", "all-gather", "64-byte"):
        assert word in done.stdout


def test_a_recipe_for_more_gpus_than_there_are_leaves_none_idle() -> None:
    outcome = megatron_entropic("plan", "llama3.3_70b", "--gpus", "8")
    assert "the recipe's own, which takes 64 of 8 GPUs" in outcome.output
    assert ", 0 of 8 idle;" in outcome.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["parallel.tensor=6"], "parallel.tensor=6 does not divide the model's num_attention_heads=64; legal values: 1, 2, 4, 8, 16"),
        (["parallel.pipeline=7"], "parallel.pipeline=7 does not divide the model's num_hidden_layers=80; legal values: 1, 2, 4, 5"),
        (["rollout.tensor=3"], "rollout.tensor=3 cannot split the model's num_attention_heads=64"),
        (["--gpus", "60"], "--gpus=60 is not a multiple of --gpus-per-node=8; legal values: 8 x nodes"),
        (["--gpus", "64", "--nodes", "4"], "--gpus=64 is not --nodes=4 x --gpus-per-node=8"),
        (["--gpu", "h1000"], "--gpu=h1000: not one of a100-40, a100, h100"),
        (["--assume", "mfuu=0.3"], "did you mean 'mfu'?"),
        (["--assume", "mfu=fast"], "--assume mfu=fast: the value must be a number above 0"),
        (["model.hf_path=models/unknown"], "models/unknown/config.json: no such file"),
        (["control.target_entropy=20"], "control.target_entropy=20: no policy over this vocabulary has more than"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], named: str) -> None:
    outcome = megatron_entropic("plan", "quickstart", *LLAMA_70B, *arguments)
    assert outcome.code == 2
    assert named in outcome.output
    assert outcome.output.count("\n") == 1


def test_nothing_fits_is_said_and_is_the_exit_code() -> None:
    outcome = megatron_entropic("plan", "quickstart", *LLAMA_70B, "--gpus", "16", "--gpu-memory", "24")
    assert outcome.code == 1
    assert "No layout fits 16 GPUs of 24 GB" in outcome.output
    assert "DOES NOT FIT" in outcome.output


def test_assumptions_and_memory_are_printed_as_given() -> None:
    text, fits = plan("quickstart", LLAMA_70B, nodes=16, gpu="a100", memory_gb=76.5, assume=["mfu=0.31"])
    assert fits
    assert "16 x 8 a100 of 76.5 GB" in text
    assert "mfu                 0.31" in text
