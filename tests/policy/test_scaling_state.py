"""Scaling states of layers: left out where there is no FP8, required where there is."""

import pytest
import torch
from torch import nn

from megatron_entropic.policy.scaling_state import load_state, without_scaling_state


class Scaled(nn.Linear):
    """A layer that, as Transformer Engine's, has a state beside its parameters."""

    scale = 1.0

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.scale)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.scale = float(state)


def saved(scale: float) -> dict[str, object]:
    model = nn.Sequential(Scaled(2, 2, bias=False))
    model[0].scale = scale
    return model.state_dict()


def test_without_fp8_layers_load_what_others_saved() -> None:
    model = nn.Sequential(Scaled(2, 2, bias=False))
    parameters = without_scaling_state(saved(3.0))
    assert list(parameters) == ["0.weight"]
    load_state(model, parameters, scaling=False)
    assert torch.equal(model[0].weight, parameters["0.weight"])
    assert model[0].scale == 1.0


def test_with_fp8_the_scaling_state_is_required() -> None:
    model = nn.Sequential(Scaled(2, 2, bias=False))
    load_state(model, saved(3.0), scaling=True)
    assert model[0].scale == 3.0
    with pytest.raises(KeyError, match=r"missing: 0\._extra_state"):
        load_state(model, without_scaling_state(saved(3.0)), scaling=True)


def test_parameters_are_required_and_no_others_taken() -> None:
    with pytest.raises(KeyError, match=r"missing: 0\.weight; not of this model: 1\.weight"):
        load_state(nn.Sequential(Scaled(2, 2, bias=False)), {"1.weight": torch.ones(1)}, scaling=False)


def test_grouped_experts_states_are_left_out_too() -> None:
    assert without_scaling_state({"experts.linear_fc1._extra_state1": 0, "experts.linear_fc1.weight1": 1}) == {
        "experts.linear_fc1.weight1": 1
    }
