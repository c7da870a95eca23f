"""Expert-parallel layouts that cannot be are refused before anything starts, naming the setting and its legal values."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from megatron_entropic.config import ParallelConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.layout import split_problems
from tests import tiny_models


def problems(kind: str, folder: Path, layout: ParallelConfig) -> list[str]:
    model = tiny_models.build(kind)
    model.config.save_pretrained(folder)
    tiny_models.edit_config(folder, architectures=[type(model).__name__])
    return split_problems(Architecture.from_hf(folder), layout)


@pytest.mark.parametrize(
    ("kind", "layout", "expected"),
    [
        ("mistral", ParallelConfig(data=2, expert=2), "parallel.expert=2, but MistralForCausalLM is dense; legal values: 1"),
        (
            "mixtral",
            ParallelConfig(data=3, expert=3),
            "parallel.expert=3 does not divide the model's number of experts=4; legal values: 1, 2, 4",
        ),
        (
            "qwen3_moe",
            ParallelConfig(tensor=2, expert=2),
            "parallel.sequence=false, but Qwen3MoeForCausalLM over parallel.tensor=2 ranks needs true: every tensor rank sends its own "
            "tokens to the experts",
        ),
    ],
)
def test_what_an_moe_or_a_dense_model_cannot_be_split_into_is_named(
    tmp_path: Path, kind: str, layout: ParallelConfig, expected: str
) -> None:
    assert problems(kind, tmp_path, layout) == [expected]


def test_experts_are_not_split_over_tensor_ranks(tmp_path: Path) -> None:
    """4 tensor ranks need not divide an expert's inner size: only the attention is split."""
    assert problems("qwen3_moe", tmp_path, ParallelConfig(tensor=4, sequence=True, expert=4)) == []
    tiny_models.edit_config(tmp_path, moe_intermediate_size=25)
    assert split_problems(Architecture.from_hf(tmp_path), ParallelConfig(tensor=4, sequence=True)) == []


def test_expert_ranks_are_tensor_and_data_ranks() -> None:
    assert ParallelConfig(tensor=2, sequence=True, data=2, pipeline=2, expert=4).world_size == 8
    with pytest.raises(
        ValidationError, match=r"parallel\.expert=4 does not divide parallel\.tensor=1 .* parallel\.data=6.*: 1, 2, 3, 6 "
    ):
        ParallelConfig(data=6, pipeline=4, expert=4)
