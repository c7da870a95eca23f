"""The parts of the smoke test: what each one notices, and the whole command on this machine."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_entropic.doctor.smoke import kernels, layers, packings, resuming, short_run, two_ranks, who_is_who
from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.doctor.smoke.layers import PackedPass
from megatron_entropic.doctor.smoke.machine_size import QWEN2_5_1_5B, TINY, MachineSize, machine_size, save_random_model
from megatron_entropic.doctor.smoke.table import PARTS
from megatron_entropic.doctor.speed.cases import KernelCase, cases
from megatron_entropic.doctor.speed.problem import KernelProblem
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import check_hf_dir
from tests.command_line import ROOT, megatron_entropic

CPU = MachineSize(torch.device("cpu"), "float32", TINY, tokens=256)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
def test_the_whole_command_on_this_machine(tmp_path: Path) -> None:
    """Everything that can be tried here passes; what cannot is named, and nothing is left."""
    outcome = megatron_entropic("doctor", "--gpu-smoke", "--json", str(tmp_path / "found.json"), timeout=590)
    assert outcome.code == 0, outcome.output
    assert outcome.left_behind == []
    parts = {part["name"]: part for part in json.loads((tmp_path / "found.json").read_text())["parts"]}
    assert list(parts) == [part.name for part in PARTS]
    if torch.cuda.is_available():
        return
    assert {part["result"] for part in parts.values()} == {"passed"}
    assert "they need a GPU" in parts["layers"]["untried"]["Transformer Engine's layers"]
    assert any("two GPUs" in why for why in parts["two-gpus"]["untried"].values())
    assert parts["packings"]["found"]["compiled"]["afterwards"] == "0"
    assert parts["resume"]["found"]["two resumed steps against two uninterrupted ones"]["that differ"] == "0"
    server = parts["server"]["found"]
    assert server["weights sent over gloo"]["the update moved log probs by"] > 1000 * server["weight version 1"]["gap mean"]


# kernels


def with_first_logit_ignored(problem: KernelProblem) -> list[Tensor]:
    log_p_TV = problem.logits[:, 1:].log_softmax(-1)
    return [log_p_TV.gather(1, (problem.targets_T - 1).clamp(min=0)[:, None]).squeeze(1), -(log_p_TV.exp() * log_p_TV).sum(-1)]


def theirs_fails(problem: KernelProblem) -> list[Tensor]:
    raise RuntimeError("not on this GPU")


SMALL = kernels.ProblemSize(tokens=8, checked=4, vocab=64, hidden=16, repeats=1, timed_dtype=torch.float32)


def kernel_findings(monkeypatch: pytest.MonkeyPatch, *changed: KernelCase) -> Findings:
    group = [case for case in cases("cpu") if case.group == "log-prob + entropy" and not case.package]
    kept = [case for case in group if case.name not in {one.name for one in changed}]
    monkeypatch.setattr(kernels, "cases", lambda device: [*kept, *changed])
    monkeypatch.setattr(kernels, "ON_A_CPU", SMALL)
    monkeypatch.setattr(kernels, "copy_bandwidth", lambda device, repeats: 1e9)
    findings = Findings()
    kernels.run(findings)
    return findings


def test_a_wrong_kernel_is_found_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = kernel_findings(monkeypatch, KernelCase("log-prob + entropy", "token_statistics", with_first_logit_ignored))
    assert any("token_statistics, float32: value error against float64" in failure for failure in findings.failures)
    assert not any("mean lowering" in failure for failure in findings.failures)
    assert any(what.startswith("speed, log-prob + entropy, float32, token_statistics, mean lowering") for what, _ in findings.rows)


def test_anothers_failing_kernel_is_named_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = kernel_findings(monkeypatch, KernelCase("log-prob + entropy", "theirs", theirs_fails, "verl"))
    assert findings.failures == []
    assert any("theirs" in what and "not on this GPU" in why for what, why in findings.untried)


def test_packages_that_are_absent_are_named_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = [KernelCase("log-prob + entropy", name, theirs_fails, "verl", "not installed") for name in ("one", "two")]
    findings = kernel_findings(monkeypatch, *absent)
    assert ("verl, 2 cases", "not installed") in findings.untried


# layers


def judged(spec: layers.LayerSpec, dtype: layers.DTypeName, **distance: float) -> list[str]:
    findings = Findings()
    rounded = {"hidden_mean": 0.01, "hidden_max": 0.1, "log_prob_mean": 0.01, "log_prob_max": 0.1}
    layers._judge(findings, spec, dtype, rounded | distance, rounded)
    return findings.failures


def test_layers_may_be_as_far_from_float32_as_rounding_makes_them() -> None:
    assert judged("local", "bfloat16", log_prob_mean=0.014) == []
    assert judged("transformer_engine", "float32", hidden_mean=0.014) == []
    assert judged("local", "float32", log_prob_max=1e-4) == []
    assert len(judged("local", "float32", log_prob_max=2e-3)) == 1
    assert len(judged("local", "bfloat16", log_prob_mean=0.016, hidden_mean=math.nan)) == 2


def test_the_distance_of_two_passes() -> None:
    one = PackedPass(torch.full((2, 3), 2.0), torch.tensor([-1.0, -2.0]))
    other = PackedPass(torch.full((2, 3), 4.0), torch.tensor([-1.0, -3.0]))
    assert one.distance(other) == {"hidden_mean": 0.5, "hidden_max": 0.5, "log_prob_mean": 0.5, "log_prob_max": 1.0}


def test_the_random_model_is_one_that_a_run_can_start_from(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, CPU)
    check_hf_dir(folder, arch := Architecture.from_hf(folder))
    assert arch.vocab_size == TINY["vocab_size"]
    assert (
        save_random_model(tmp_path / "again", CPU).joinpath("model.safetensors").read_bytes()
        == (folder / "model.safetensors").read_bytes()
    )


def test_the_shape_is_qwens() -> None:
    config = json.loads((ROOT / "recipes" / "architectures" / "Qwen2.5-1.5B" / "config.json").read_text())
    assert {name: config[name] for name in QWEN2_5_1_5B if name != "max_position_embeddings"} == {
        name: value for name, value in QWEN2_5_1_5B.items() if name != "max_position_embeddings"
    }


def test_only_a_missing_attention_kernel_excuses_layers() -> None:
    findings = Findings()
    layers._not_computed(findings, "these", ValueError("No dot product attention backend is available for the provided inputs."))
    layers._not_computed(findings, "those", RuntimeError("CUDA error: an illegal memory access"))
    assert [what for what, _ in findings.untried] == ["these"]
    assert findings.failures == ["those: RuntimeError: CUDA error: an illegal memory access"]


# packings


def test_packings_differ_and_fill_a_micro_batch() -> None:
    rng = random.Random(0)
    packings_seen = set()
    for _ in range(packings.PACKINGS):
        lengths = tuple(sample.length for sample in packings.random_batch(rng, CPU).samples)
        assert 0.9 * CPU.tokens <= sum(lengths) <= CPU.tokens
        packings_seen.add(lengths)
    assert len(packings_seen) == packings.PACKINGS


def test_compilations_are_counted() -> None:
    """Both kinds: a torch.compile for each new function, and Triton's through its own hook."""
    triton = pytest.importorskip("triton")
    counted = packings.Compilations()
    before = counted.count()
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3))
    assert counted.count() == before + 1
    triton.knobs.runtime.jit_post_compile_hook(key="", repr="", fn=None, compile={}, is_manual_warmup=False, already_compiled=False)
    assert counted.count() == before + 2
    triton.knobs.runtime.jit_post_compile_hook = None


# resume


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1.0, "b": None}, {"a": 1.0, "b": None}, {}),
        ({"a": 1.0}, {"a": 1.5}, {"a": 0.5}),
        ({"a": 100.0}, {"a": 101.0}, {"a": 0.01}),
        ({"a": 1.0}, {"a": None}, {"a": math.inf}),
        ({"a": 1.0}, {}, {"a": math.inf}),
    ],
)
def test_metrics_that_differ_are_found(before: dict[str, Any], after: dict[str, Any], expected: dict[str, float]) -> None:
    assert resuming.differing([before], [after]) == pytest.approx(expected)


def test_a_run_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="exit code 2"):
        short_run.train("no_such_recipe")


# two GPUs, versions


def test_one_gpu_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    findings = Findings()
    two_ranks.run(findings)
    assert findings.rows == findings.failures == []
    assert "they need two GPUs; here is one" in findings.untried[0][1]


@pytest.mark.distributed
def test_a_rank_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file, where the model's folder should be")
    with pytest.raises(RuntimeError, match="rank 0 ended with exit code"):
        two_ranks._run_ranks(tmp_path)


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = who_is_who.versions() | {"transformers": None, "apex": None}
    monkeypatch.setattr(who_is_who, "versions", lambda: dict(known))
    findings = Findings()
    who_is_who.run(findings)
    assert findings.failures == ["transformers is not installed"]
    assert ("its fused Adam; another is used instead", "apex is not installed") in findings.untried


def test_gpus_that_torch_does_not_see_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_entropic.doctor.gpus.inspect_gpus", lambda: ([], ["nvidia-smi lists 2 GPUs, but torch sees none"]))
    findings = Findings()
    who_is_who.run(findings)
    assert findings.failures == ["nvidia-smi lists 2 GPUs, but torch sees none"]


@pytest.mark.slow
@pytest.mark.vllm
def test_the_short_run_with_a_server_that_gpus_are_given(tmp_path: Path) -> None:
    """Without its GPU settings, on this machine."""
    findings = Findings(kept=tmp_path)
    short_run.train_with_server(findings, "three steps", "batch.prompts_per_step=8", "batch.samples_per_prompt=4")
    assert findings.failures == []
    assert findings.rows[0][1]["steps"] == "3"
    assert (tmp_path / "train" / "logs" / "vllm_0.log").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cpu_gets_tiny_shapes() -> None:
    assert machine_size() == CPU
