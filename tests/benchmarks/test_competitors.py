"""The benchmark's cases compute what they are said to; other projects' run here where they are installed, and never stop a run."""

import json
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_device, token_statistics
from megatron_entropic.doctor.speed import competitors, timing
from megatron_entropic.doctor.speed.cases import KernelCase, cases, is_linear
from megatron_entropic.doctor.speed.problem import KernelProblem
from tests.entropy import kernel_checks
from tests.run_ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = SimpleNamespace(vocab=300, hidden=128, tokens=8, check_tokens=8, clamp=0.4, device="cpu")


def assert_right(case: KernelCase) -> None:
    errors = token_statistics.errors(ARGUMENTS, case, "float32")  # type: ignore[arg-type]
    assert errors["value_error"] < 5e-6, case.name
    assert errors["gradient_error"] < 5e-5, case.name


def named(name: str) -> KernelCase:
    (case,) = (case for case in cases("cpu") if case.name == name)
    return case


@pytest.mark.parametrize("case", [case for case in cases("cpu") if not case.package], ids=lambda case: f"{case.group}, {case.name}")
def test_cases_of_torch_alone(case: KernelCase) -> None:
    assert_right(case)


def test_megatron() -> None:
    run_ranks(assert_right, 1, named("Megatron-Core"))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed (`make bench` installs it)")
@pytest.mark.parametrize("name", ["verl, Megatron", "verl, FSDP", "verl, FSDP, 4 chunks", "verl, fused (torch)"])
def test_verl(name: str) -> None:
    run_ranks(assert_right, 1, named(name), timeout=400.0)


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="Liger-Kernel is not installed (`make bench` installs it)")
def test_liger_on_a_cpu() -> None:
    assert_right(named("Liger-Kernel, fused"))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="Liger-Kernel is not installed (`make bench` installs it)")
@pytest.mark.parametrize("name", ["Liger-Kernel", "Liger-Kernel, vocab-parallel"])
def test_ligers_kernels_in_tritons_interpreter(name: str) -> None:
    code = f"from tests.benchmarks.test_competitors import assert_right, named; assert_right(named({name!r}))"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=300)


def install(monkeypatch: pytest.MonkeyPatch, module: str, **functions: object) -> None:
    """A module of this name, its parents and these functions, for one test."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(parts[depth - 1]))
    for name, function in functions.items():
        setattr(sys.modules[module], name, function)


def published_cross_entropy(overwritten: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """As Liger's: positive, and its input is not the same afterwards."""
    loss = torch.nn.functional.cross_entropy(overwritten.clone(), target, reduction=reduction)
    with torch.no_grad():
        overwritten.detach().zero_()
    return loss


def test_overwriting_kernels_get_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "liger_kernel.transformers.functional", liger_cross_entropy=published_cross_entropy)
    problem = KernelProblem.make(4, 50, 8, torch.float32, "cpu", 0.4, linear=False)
    before_TV = problem.logits.detach().clone()
    assert_right(KernelCase("log-prob", "Liger-Kernel", competitors.liger_log_prob, "liger_kernel"))
    competitors.liger_log_prob(problem)
    assert torch.equal(problem.logits, before_TV)


def test_verls_fused_triton_layer_is_called_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its six positional arguments; it gives log-probs, not losses, then entropies."""

    def published(
        hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float, reduction: str, group: object
    ) -> tuple[Tensor, Tensor]:
        assert (temperature, reduction, group) == (1.0, "none", None)
        log_p_TV = (hidden @ weight.T).log_softmax(-1)
        return log_p_TV.gather(1, labels[:, None])[:, 0], -(log_p_TV.exp() * log_p_TV).sum(-1)

    install(monkeypatch, "verl.utils.kernel.linear_cross_entropy", linear_cross_entropy=published)
    assert_right(KernelCase("output layer", "verl", competitors.verl_linear_triton, "verl"))


def test_what_is_absent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_entropic.doctor.speed.cases.find_spec", lambda name: None)
    assert {case.missing for case in cases("cuda") if case.package} == {"not installed"}
    assert not any(case.missing for case in cases("cuda") if not case.package)


def test_what_needs_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_entropic.doctor.speed.cases.find_spec", lambda name: object())
    missing = {case.name for case in cases("cpu") if case.missing == "needs a GPU"}
    assert missing == {"verl, fused (Triton)", "Liger-Kernel", "Liger-Kernel, vocab-parallel"}
    assert not any(case.missing for case in cases("cuda"))


def test_a_broken_package_is_a_row_and_our_own_failure_an_error() -> None:
    def broken(problem: KernelProblem) -> list[Tensor]:
        raise ImportError("no | such\nthing")

    problem = KernelProblem.make(2, 9, 8, torch.float32, "cpu", 0.4, linear=False)
    assert timing.warm_up(KernelCase("log-prob", "theirs", broken, "verl"), problem) == "fails: ImportError: no / such"
    with pytest.raises(ImportError, match="no"):
        timing.warm_up(KernelCase("log-prob", "ours", broken), problem)


def test_a_warm_up_leaves_no_gradient() -> None:
    for case in (named("token_log_probs"), named("linear_token_statistics")):
        problem = KernelProblem.make(2, 9, 8, torch.float32, "cpu", 0.4, linear=is_linear(case))
        assert timing.warm_up(case, problem) == ""
        assert all(leaf.grad is None for leaf in problem.leaves)


def test_every_row_of_the_table_has_all_columns() -> None:
    seconds = {"forward_s": 1.0, "backward_s": 1.0, "total_s": 2.0}
    rows: list[dict[str, Any]] = [
        {"dtype": "float32", "group": "log-prob", "case": "a", "missing": "not installed"},
        {"dtype": "float32", "group": "output layer", "case": "the four GEMMs alone", **seconds},
    ]
    assert {line.count("|") for line in token_statistics.markdown(rows).splitlines()} == {12}


@pytest.mark.slow
def test_a_whole_run_on_a_cpu(tmp_path: Path) -> None:
    """A table, and JSON with a row a case and the versions, in a folder that was not there."""
    report = tmp_path / "new" / "report.json"
    options = ["--tokens=8", "--vocab=512", "--repeats=1", "--dtypes=bfloat16", "--device=cpu", "--groups=log-prob", f"--json={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.token_statistics", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    written = json.loads(report.read_text())
    assert [row["case"] for row in written["rows"]] == [case.name for case in cases("cpu") if case.group == "log-prob"]
    assert written["versions"]["torch"] == metadata.version("torch")
    assert "| bfloat16 | log-prob | token_log_probs |" in done.stdout
    assert list(report.parent.iterdir()) == [report]


def test_gpu_script_stops_without_a_gpu_and_says_what_to_do(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path / "results")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, stdout=subprocess.PIPE, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "sees no GPU" in done.stdout
    assert done.stdout == (tmp_path / "results" / "gpu.log").read_text()
    assert done.stdout.count("== ") == 1


def test_gpu_script_runs_every_step_and_names_the_failed(tmp_path: Path) -> None:
    """With an interpreter that fails at the checks, the benchmarks run all the same, and the exit code tells."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in tests.*) exit 3;; esac\n')
    python.chmod(0o755)
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHON": str(python)}, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.count("== benchmark of token statistics") == 4  # two of them, begun and done
    assert "-m megatron_entropic.cli doctor --gpu-smoke --json" in done.stdout
    assert "FAILED: kernels against their definition\nFAILED: real sizes, and two tensor ranks" in done.stdout


def test_all_checks_run_and_the_failed_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    def check_bad() -> None:
        raise AssertionError("off by one")

    def check_good() -> None:
        pass

    assert kernel_checks.run_checks((check_bad, check_good)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 checks passed, 1 failed: check_bad"
    assert kernel_checks.run_checks((check_good,)) == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu_device.find_spec", lambda name: None if name == "numpy" else object())
    assert "has no numpy: install it" in gpu_device.obstacle()
