"""The parts that run inside vLLM, without a server: which updates count as complete, and registration."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

pytestmark = [pytest.mark.vllm, pytest.mark.slow]  # importing vLLM alone takes 10 s


class FusedModel(nn.Module):
    """Loads "a" and "b" into one parameter, like vLLM's fused projections."""

    def __init__(self) -> None:
        super().__init__()
        self.ab = nn.Parameter(torch.zeros(2))
        self.c = nn.Parameter(torch.zeros(1))

    def load_weights(self, weights: list[tuple[str, Tensor]]) -> set[str]:
        return {"ab" if name in "ab" else name for name, _ in weights}


def test_an_update_that_leaves_a_parameter_untouched_is_refused() -> None:
    from megatron_entropic.rollout.vllm.worker_plugin import ReceivedModel
    from megatron_entropic.rollout.weight_sync.checksum import weights_checksum

    a, b, c = (("a", torch.ones(1)), ("b", torch.ones(1)), ("c", torch.ones(1)))
    received = ReceivedModel(FusedModel(), tied={})
    received.load_weights([a])
    received.load_weights([b])
    with pytest.raises(RuntimeError, match=r"1 parameters of the model, e\.g\. \['c'\]"):
        received.finish()
    received.load_weights([c])
    assert received.finish() == weights_checksum([a, b, c])


class TiedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embedding.weight


def test_a_tied_parameter_is_not_missed_but_must_stay_tied() -> None:
    from megatron_entropic.rollout.vllm.worker_plugin import ReceivedModel, renew_tied_layers, tied_parameters

    model = TiedModel()
    tied = tied_parameters(model)
    assert tied == {"head.weight": "embedding.weight"}
    model.head.weight = nn.Parameter(torch.zeros(3, 2))
    assert ReceivedModel(model, tied).expected == {"embedding.weight"}
    with pytest.raises(RuntimeError, match=r"separated head\.weight from embedding\.weight"):
        renew_tied_layers(model, tied)


def test_backends_are_registered_once_and_importable_twice() -> None:
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    from megatron_entropic.rollout.vllm import worker_plugin

    worker_plugin.register()
    for backend, engine in (
        ("entropic_gloo", worker_plugin.GlooWeightTransferEngine),
        ("entropic_nccl", worker_plugin.CheckedNCCLWeightTransferEngine),
    ):
        assert WeightTransferEngineFactory._registry[backend]() is engine


def test_the_trainers_side_does_not_import_vllm() -> None:
    program = "import sys, megatron_entropic.rollout.vllm.fleet; sys.exit(any(name.split('.')[0] == 'vllm' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], timeout=300, check=False).returncode == 0
