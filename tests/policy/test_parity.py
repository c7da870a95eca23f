"""The policy computes what transformers computes, in every layout, and gives its weights back bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from safetensors.torch import load_file

from megatron_entropic.config import Config, ModelConfig, ParallelConfig
from megatron_entropic.distributed.parallel import Parallel, initialize_parallel, shutdown
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.files import write_hf
from megatron_entropic.hf.mapping import merge
from megatron_entropic.hf.tables import model_rows
from megatron_entropic.policy.model import PolicyModel, build_model
from megatron_entropic.policy.weights import hf_weights, load_hf_weights, named_parameters
from tests import tiny_models
from tests.run_ranks import run_ranks

LENGTHS = (3, 200, 17, 1, 63)  # their sum is a multiple of 4, as sequence parallelism needs

DENSE_LAYOUTS = {
    "tp1": ParallelConfig(),
    "tp2": ParallelConfig(tensor=2),
    "pp2": ParallelConfig(pipeline=2),
    "tp2_pp2": ParallelConfig(tensor=2, pipeline=2),
    "tp2_sp": ParallelConfig(tensor=2, sequence=True),
    "tp4_more_ranks_than_kv_heads": ParallelConfig(tensor=4),
    "dp2_pp2": ParallelConfig(data=2, pipeline=2),
}
MOE_LAYOUTS = {
    "alone": ParallelConfig(),
    "pp2-dp2": ParallelConfig(data=2, pipeline=2),
    "tp2-sp": ParallelConfig(tensor=2, sequence=True),
    "ep2": ParallelConfig(data=2, expert=2),
    "ep4": ParallelConfig(data=4, expert=4),
    "ep2-of-4": ParallelConfig(data=4, expert=2),
    "ep2-tp2-sp": ParallelConfig(tensor=2, sequence=True, expert=2),
    "ep2-pp2": ParallelConfig(pipeline=2, data=2, expert=2),
    "ep4-tp2-sp-dp2": ParallelConfig(tensor=2, sequence=True, data=2, expert=4),
    "ep2-tp2-sp-pp2": ParallelConfig(tensor=2, sequence=True, pipeline=2, expert=2),
}
LAYOUTS = {f"dense-{name}": (tiny_models.DENSE, layout) for name, layout in DENSE_LAYOUTS.items()} | {
    f"moe-{name}": (tiny_models.MOE, layout) for name, layout in MOE_LAYOUTS.items()
}
"""Which architectures in which layout."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model directory for every architecture, its logits on LENGTHS and the gradients of their weighted sum.

    The gradients are saved as transformers saves a model, so that they have the names of a checkpoint.
    """
    root = tmp_path_factory.mktemp("models")
    for kind in tiny_models.ARCHITECTURES:
        model = tiny_models.save(kind, root / kind)
        logits = torch.cat([model(tokens[None]).logits[0] for tokens in sequences()])
        (logits * weighting(logits)).sum().backward()
        torch.save(logits.detach(), root / f"{kind}.logits")
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.copy_(parameter.grad)
        model.save_pretrained(root / f"{kind}-gradients")
    return root


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, tiny_models.VOCAB_SIZE, (length,), generator=generator) for length in LENGTHS]


def weighting(logits: torch.Tensor) -> torch.Tensor:
    return torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))


def forward(model: PolicyModel, parallel: Parallel) -> torch.Tensor | None:
    """All tokens' logits over the true vocabulary on the last stage, None elsewhere."""
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    params = PackedSeqParams("thd", cu_seqlens, cu_seqlens, max_seqlen_q=max(LENGTHS), max_seqlen_kv=max(LENGTHS))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    rows = sum(LENGTHS) // (parallel.tp_size if model.config.sequence_parallel else 1)
    if not parallel.is_first_stage:
        received = torch.empty(rows, 1, model.config.hidden_size)
        dist.recv(received, src=dist.get_global_rank(parallel.pp_group, parallel.pp_rank - 1), group=parallel.pp_group)
        model.set_input_tensor(received)
    hidden = model(torch.cat(sequences())[None], positions, None, packed_seq_params=params)
    assert hidden.shape == (rows, 1, model.config.hidden_size)
    if not parallel.is_last_stage:
        dist.send(hidden, dst=dist.get_global_rank(parallel.pp_group, parallel.pp_rank + 1), group=parallel.pp_group)
        return None
    if model.config.sequence_parallel:
        hidden = torch.cat(all_gathered(hidden, parallel))
    local = hidden[:, 0] @ model.lm_head_weight().T
    whole = torch.cat(all_gathered(local, parallel), -1) if parallel.tp_size > 1 else local
    assert whole.shape[1] == model.vocab_size > tiny_models.VOCAB_SIZE
    assert not whole[:, tiny_models.VOCAB_SIZE :].any(), "padding rows of the head are not zero"
    return whole[:, : tiny_models.VOCAB_SIZE]


def all_gathered(tensor: torch.Tensor, parallel: Parallel) -> list[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(parallel.tp_size)]
    dist.all_gather(parts, tensor.detach().contiguous(), group=parallel.tp_group)
    return parts


def check_layout(layout: str, root: Path, out: Path) -> list[str]:
    """Runs on every rank: parity of the forward pass and bit-exact export, for the layout's architectures."""
    kinds, parallel_config = LAYOUTS[layout]
    parallel = initialize_parallel(parallel_config, seed=1)
    checked = []
    for kind in kinds:
        arch = Architecture.from_hf(root / kind)
        cfg = Config(model=ModelConfig(dtype="float32", vocab_pad_multiple=16), parallel=parallel_config)
        model = build_model(arch, cfg, parallel)
        load_hf_weights(model, root / kind, parallel)
        with torch.no_grad():
            logits = forward(model, parallel)
        if logits is not None:
            expected = torch.load(root / f"{kind}.logits")
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5, msg=lambda text, kind=kind: f"{kind}: {text}")
            checked.append(kind)
        export(model, parallel, root / kind, out / kind)
    shutdown()
    return checked


def export(model: PolicyModel, parallel: Parallel, source: Path, out: Path) -> None:
    stream = hf_weights(model, parallel)
    if parallel.rank == 0:
        write_hf(out, stream, source)
        return
    for _, tensor in stream:
        assert tensor.numel() == 0


def gradients(kind: str, root: Path, expert_ranks: int) -> dict[str, np.ndarray]:
    """Hugging Face names and gradients of this rank's parameters under the loss whose gradients the fixture saved.

    With several expert-parallel ranks only rank 0's tokens are in the loss; the experts of all ranks compute them.
    """
    layout = ParallelConfig(data=expert_ranks, expert=expert_ranks)
    parallel = initialize_parallel(layout, seed=1)
    arch = Architecture.from_hf(root / kind)
    model = build_model(arch, Config(model=ModelConfig(dtype="float32"), parallel=layout), parallel)
    load_hf_weights(model, root / kind, parallel)
    logits = forward(model, parallel)
    assert logits is not None
    (logits * weighting(logits) * (parallel.rank == 0)).sum().backward()
    rows, named = model_rows(arch), {}
    for name, parameter in named_parameters(model, parallel).items():
        if parallel.rank == 0 or rows[name].expert is not None:
            named.update(zip(rows[name].hf, merge(rows[name].layout, [parameter.grad], arch), strict=True))
    shutdown()
    return {name: gradient.numpy() for name, gradient in named.items()}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_equal_transformers_and_export_is_bit_identical(layout: str, models: Path, tmp_path: Path) -> None:
    kinds, parallel_config = LAYOUTS[layout]
    checked = run_ranks(check_layout, parallel_config.world_size, layout, models, tmp_path)
    assert list(kinds) in checked
    for kind in kinds:
        exported = {path.name: path.read_bytes() for path in (tmp_path / kind).iterdir()}
        source = {path.name: path.read_bytes() for path in (models / kind).iterdir()}
        assert exported == source, f"{kind}: files differ: {sorted(exported)} against {sorted(source)}"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "expert_ranks"), [(kind, 1) for kind in tiny_models.ARCHITECTURES] + [(kind, 2) for kind in tiny_models.MOE]
)
def test_gradients_equal_transformers(kind: str, expert_ranks: int, models: Path) -> None:
    ours: dict[str, np.ndarray] = {}
    for of_rank in run_ranks(gradients, expert_ranks, kind, models, expert_ranks):
        assert not ours.keys() & of_rank.keys()
        ours |= of_rank
    expected = load_file(models / f"{kind}-gradients" / "model.safetensors")
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(torch.from_numpy(ours[name]) / scale, gradient / scale, rtol=1e-5, atol=1e-5, msg=name)
