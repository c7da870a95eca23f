"""The planned memory of a training rank is what real updates take, within a tenth, on every stage of many layouts."""

from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.config.loading import load_config
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.training_memory import training_memory
from tests.planning.measured import peak_of_updates, save_random_model
from tests.run_ranks import run_ranks

TOLERANCE = 0.10
SETTINGS = ["parallel.tensor=1", "batch.max_tokens_per_micro_batch=1024", "rollout.engine=local", "trainer.tensorboard=false"]
LLAMA = {"architectures": ["LlamaForCausalLM"]}
QWEN2_TIED = {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True}
MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
}
WIDE = {"hidden_size": 512, "intermediate_size": 2048}
CASES: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "activations": (LLAMA, 2, []),
    "vocabulary": ({"vocab_size": 60_000, "num_hidden_layers": 2}, 1, []),
    "clamped entropy": ({"vocab_size": 20_000}, 1, ["control.kind=aent"]),
    "sharded optimizer": (WIDE, 1, ["parallel.data=2", "batch.max_tokens_per_micro_batch=128"]),
    "tensor, half precision": ({}, 1, ["parallel.tensor=2", "model.dtype=bfloat16"]),
    "tensor and sequence": ({}, 1, ["parallel.tensor=2", "parallel.sequence=true"]),
    "shared key heads": ({"num_key_value_heads": 2}, 1, ["parallel.tensor=4", "parallel.sequence=true"]),
    "pipeline, tied": (QWEN2_TIED, 4, ["parallel.pipeline=2"]),
    "deep pipeline, half precision": ({}, 6, ["parallel.pipeline=4", "model.dtype=bfloat16"]),
    "all but data": ({}, 3, ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"]),
    "experts": (MOE, 1, ["parallel.data=2", "parallel.expert=2", "model.dtype=bfloat16"]),
    "experts, tensor and sequence": (MOE, 2, ["parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2"]),
    "recomputed experts": (MOE, 1, ["model.recompute=selective"]),
    "recomputed MLPs": ({}, 1, ["model.recompute=selective"]),
    "recomputed layers": ({"num_hidden_layers": 8}, 2, ["model.recompute=full", "parallel.pipeline=2", "model.dtype=bfloat16"]),
}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_planned_memory_is_measured(case: str, tmp_path: Path) -> None:
    model, micro_batches, layout = CASES[case]
    hf_dir = save_random_model(tmp_path / "model", **model)
    cfg = load_config("quickstart", [*SETTINGS, *layout, f"model.hf_path={hf_dir}"])
    planned = training_memory(
        Architecture.from_hf(hf_dir),
        cfg,
        implementation="local",
        micro_batches=micro_batches,
        gpu_bytes=None,
    )
    measured = run_ranks(peak_of_updates, cfg.parallel.world_size, cfg, micro_batches)
    ranks_per_stage = cfg.parallel.world_size // cfg.parallel.pipeline
    for rank, (peak, parameters) in enumerate(measured):
        stage = planned[rank // ranks_per_stage]
        assert stage.parameters == parameters
        assert stage.peak == pytest.approx(peak, rel=TOLERANCE), f"rank {rank}: planned {stage.peak / peak:.3f} of the measured"
