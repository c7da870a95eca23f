"""Every recipe and variant: it loads, its layout is legal and fits what it says, and it trains when it is shrunk."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.commands.plan import architecture_of, published_architecture
from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config, recipe_names
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.layout import check_layout
from megatron_entropic.hf.tables import hf_shapes
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.planning.model_memory import ModelSize
from megatron_entropic.trainer import train
from recipes import overview
from recipes.lab.cases import all_cases
from tests.run_ranks import run_ranks
from tests.tiny_models import TINY_DECOMPOSE

NAMES = overview.names()
ALL = [*NAMES, *(f"{name}:{variant}" for name in NAMES for variant in overview.variants(name))]
PUBLISHED = {  # parameters, as the models' cards and checkpoint indices count them
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "Llama-3.3-70B-Instruct": 70_553_706_496,
    "Nemotron-Research-Reasoning-Qwen-1.5B": 1_777_088_000,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-8B-Base": 8_190_735_360,
    "SmolLM2-135M-Instruct": 134_515_008,
}
SHRUNK = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def test_all_named_recipes_are_there() -> None:
    wanted = ("qwen2.5_1.5b", "nemotron_1.5b", "deepseek_r1_distill_qwen_1.5b", "qwen2.5_math_1.5b", "qwen3_8b", "llama3.1_8b")
    wanted += ("qwen3_32b", "llama3.3_70b", "llama3.3_70b_128", "qwen3_30b_a3b", "qwen3_235b_a22b")
    assert len(wanted) == len(NAMES)
    for name in wanted:
        assert load_config(name).run.name == name.replace(".", "_")
    assert set(NAMES) < set(recipe_names())


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_and_says_what_it_needs(name: str) -> None:
    cfg = load_config(name)
    candidate = overview.planned(cfg)
    assert check_layout(candidate.site.arch, cfg.parallel, cfg.batch, cfg.rollout) == []
    assert candidate.fits
    text = (overview.FOLDER / f"{name}.py").read_text()
    assert overview.line(name) in text, "run `python -m recipes.overview --write`"
    for setting in ("lr", "layout", "| source |"):
        assert setting in text


@pytest.mark.parametrize("name", ALL)
def test_every_variant_is_a_run_of_its_own_on_the_same_gpus(name: str) -> None:
    cfg, base = load_config(name), load_config(name.partition(":")[0])
    assert check_layout(architecture_of(model_folder(cfg.model.hf_path).hf_dir), cfg.parallel, cfg.batch, cfg.rollout) == []
    assert cfg.parallel == base.parallel
    assert cfg.model == base.model
    assert (cfg.run.name == base.run.name) == (cfg == base)
    assert len({load_config(other).run.name for other in ALL}) == len(ALL)


def test_the_table_of_the_page_is_made_from_the_code() -> None:
    assert overview.table() in overview.PAGE.read_text(), "run `python -m recipes.overview --write`"


def test_the_outputs_on_the_layout_page_are_what_the_commands_print() -> None:
    shown = overview.SHOWN.findall(overview.LAYOUT_PAGE.read_text())
    assert len(shown) == 3
    for arguments, output in shown:
        assert output == overview.shown_output(arguments), f"{arguments}: run `python -m recipes.overview --write`"


def test_published_architectures_have_their_models_sizes() -> None:
    folders = {path.parent.name: path.parent for path in (overview.FOLDER / "architectures").glob("*/config.json")}
    assert {name: ModelSize.of(Architecture.from_hf(folder)).total for name, folder in folders.items()} == PUBLISHED
    assert {load_config(name).model.hf_path.name for name in [*NAMES, "smollm2_135m"]} == set(PUBLISHED)


def test_released_settings_are_the_released_ones() -> None:
    cfg = load_config("qwen3_8b")
    batch, optimizer, control = cfg.batch, cfg.optimizer, cfg.control
    assert (batch.prompts_per_step, batch.samples_per_prompt, batch.mini_batches) == (512, 8, 1)
    assert (optimizer.lr, optimizer.weight_decay, optimizer.beta2, optimizer.clip_grad) == (1e-6, 0.01, 0.999, 1.0)
    assert (control.kp, control.ki, control.target_entropy, control.high_prob_threshold) == (1.0, 0.01, 0.1, 0.95)
    assert (control.actuator, control.denominator, control.anti_windup) == ("high_prob", "high_prob_tokens", "off")
    assert (cfg.rollout.temperature, cfg.rollout.max_new_tokens, cfg.checkpoint.every) == (0.6, 8192, 20)
    aent = load_config("deepseek_r1_distill_qwen_1.5b").control
    assert (aent.kind, aent.coefficient, aent.clamp, aent.entropy_low, aent.entropy_high) == ("aent", 2e-4, 0.4, 0.05, 0.23)
    assert load_config("qwen2.5_math_1.5b:rloo").algorithm.advantage == "rloo"
    assert load_config("nemotron_1.5b:off_policy_p").control.ki == 0
    assert load_config("nemotron_1.5b:off_policy_p").batch.mini_batches > 1


def test_an_unknown_variant_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match=re.escape("nemotron_1.5b:nsrr: no such variant; did you mean 'nsr'?; variants: grpo, nsr, aec")
    ):
        load_config("nemotron_1.5b:nsrr")
    with pytest.raises(ConfigError, match="variants: none"):
        load_config("quickstart:grpo")


def save_shrunk(cfg: Config, hf_dir: Path) -> Path:
    """A random model of the recipe's architecture: its published config.json with small sizes."""
    published = published_architecture(cfg.model.hf_path)
    assert published is not None
    values: dict[str, Any] = json.loads((published / "config.json").read_text())
    values |= SHRUNK
    values |= {"head_dim": 16} if "head_dim" in values else {}
    values |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24} if "num_experts" in values else {}
    hf_dir.mkdir(parents=True)
    (hf_dir / "config.json").write_text(json.dumps(values))
    generator = torch.Generator().manual_seed(0)
    shapes = hf_shapes(Architecture.from_hf(hf_dir))
    weights = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    save_file(weights, hf_dir / "model.safetensors", metadata={"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_DECOMPOSE / file, hf_dir / file)
    return hf_dir


def shrunk(name: str, folder: Path) -> Config:
    """The recipe with a tiny model, at most two ranks, and two small steps; all else as it is."""
    cfg = load_config(name)
    tensor = min(cfg.parallel.tensor, 2)
    pipeline = min(cfg.parallel.pipeline, 2 // tensor)
    data = min(cfg.parallel.data, 2 // (tensor * pipeline))
    return load_config(
        name,
        [
            f"model.hf_path={save_shrunk(cfg, folder / 'model')}",
            "model.dtype=float32",
            f"parallel.tensor={tensor}",
            f"parallel.pipeline={pipeline}",
            f"parallel.data={data}",
            f"parallel.expert={min(cfg.parallel.expert, tensor * data)}",
            f"parallel.sequence={str(tensor > 1).lower()}",
            "batch.prompts_per_step=4",
            "batch.samples_per_prompt=4",
            "batch.max_tokens_per_micro_batch=128",
            "rollout.engine=local",
            "rollout.max_new_tokens=4",
            "task.name=decompose",
            "task.options={}",
            "task.chat_template=false",
            "trainer.steps=2",
            "trainer.tensorboard=false",
            "trainer.export_hf=false",
            f"run.dir={folder / 'run'}",
        ],
    )


def train_rank(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", [*NAMES, "qwen2_5_math_1_5b:rloo", "nemotron_1_5b:off_policy", "nemotron_1_5b:nsr"])
def test_a_shrunken_recipe_trains(name: str, tmp_path: Path) -> None:
    cfg = shrunk(name, tmp_path)
    run_ranks(train_rank, cfg.parallel.world_size, cfg)
    metrics = read_metrics(cfg.run_dir / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [0, 1]
    assert all(line["policy/entropy"] > 0 and math.isfinite(line["loss/total"]) for line in metrics)
    if cfg.control.kind == "aent":  # a random model is never right: only a bonus has a gradient
        assert all(line["grad_norm"] > 0 for line in metrics)


def test_every_case_of_the_lab_has_settings_that_are_read() -> None:
    for case in all_cases():
        control = load_config("quickstart", case.overrides).control
        assert case.target is None or (control.target_entropy, control.target_unit) == (case.target, "initial")
