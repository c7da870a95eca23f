"""A checkpoint of local layers resumes with Transformer Engine's, and the other way round, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_entropic.checkpoint.optimizer_state import STATES, make_state
from megatron_entropic.checkpoint.policy_state import load_policy, sharded_state
from megatron_entropic.checkpoint.policy_writer import PolicyWriter
from megatron_entropic.config import Config, ModelConfig
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.policy.engine import Policy
from megatron_entropic.policy.weights import named_parameters
from tests import tiny_models
from tests.transformer_engine.running import with_transformer_engine

pytestmark = pytest.mark.slow
UPDATES = 3
KINDS = ("qwen3", "qwen2_tied", "qwen3_moe")


def save(policy: Policy, folder: Path) -> Path:
    folder.mkdir(parents=True)
    writer = PolicyWriter(policy, folder)
    writer.start()
    writer._thread.join()
    assert writer.written.error is None
    writer.finish([writer.written])
    return folder


def state_of(policy: Policy) -> dict[str, torch.Tensor]:
    """Copies of the weights, their masters and both moments, by the tables' names."""
    found = {}
    names = {parameter: name for name, parameter in named_parameters(policy.model, policy.parallel).items()}
    for parameter, name in names.items():
        found[name] = parameter.detach().clone()
    for part in getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]):
        for parameter in part.model_param_group_index_map:
            states = part._get_main_param_and_optimizer_states(parameter)
            found |= {f"{state} of {names[parameter]}": states[state].detach().clone() for state in STATES}
    return found


def fill(policy: Policy) -> None:
    """Gives the optimizer moments as of training, and a master that says more than the weight."""
    make_state(policy.optimizer)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]):
            for parameter in part.model_param_group_index_map:
                states = part._get_main_param_and_optimizer_states(parameter)
                for name in ("exp_avg", "exp_avg_sq"):
                    states[name].copy_(torch.rand(states[name].shape, generator=generator))


def round_trips(parallel: Parallel, folder: Path) -> dict[str, tuple[list[str], list[list[str]], list[str]]]:
    return {kind: round_trip(parallel, folder / kind, folder / f"{kind}.saved") for kind in KINDS}


def round_trip(parallel: Parallel, hf_dir: Path, folder: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """(tensors that differ after local -> Transformer Engine -> local, keys of each save, layers that were used)."""
    local = Config(model=ModelConfig(hf_path=hf_dir, layer_spec="local", dtype="float32"))
    engine = replace(local, model=replace(local.model, layer_spec="transformer_engine"))
    first = Policy(local, parallel)
    fill(first)
    expected, keys, layers = state_of(first), [], []
    policy, differing = first, []
    for number, cfg in enumerate((engine, local)):
        keys.append(keys_of(policy))
        saved = save(policy, folder / str(number))
        policy = Policy(cfg, parallel, blank=True)
        load_policy(policy, saved, UPDATES)
        layers.append(type(policy.model.decoder.layers[0].self_attention.linear_qkv).__name__)
        found = state_of(policy)
        assert found.keys() == expected.keys()
        differing += [name for name in expected if not torch.equal(found[name], expected[name])]
        assert update_counts(policy) == {UPDATES}
    return differing, [*keys, keys_of(policy)], layers


def keys_of(policy: Policy) -> list[str]:
    return sorted({entry.key for entry in sharded_state(policy)["model"].values()})


def update_counts(policy: Policy) -> set[float]:
    """The numbers of updates that Adam's bias correction goes by: torch's keeps them per parameter, the fused one per group."""
    counts: set[Any] = set()
    for part in getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]):
        counts |= {float(state["step"]) for state in part.optimizer.state.values() if "step" in state}
        counts |= {float(group["step"]) for group in part.optimizer.param_groups if "step" in group}
    return counts


def test_local_to_transformer_engine_and_back(tmp_path: Path) -> None:
    for kind in KINDS:
        tiny_models.save(kind, tmp_path / kind)
    (results,) = with_transformer_engine(round_trips, tmp_path)
    for kind, (differing, keys, layers) in results.items():
        assert layers == ["TELayerNormColumnParallelLinear", "ColumnParallelLinear"]
        assert keys[0] == keys[1] == keys[2], kind
        assert not differing, kind
