"""The in-process engine: its samples follow the model, its log-probs are the model's, its weights are what was sent."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.local_engine import LocalEngine
from megatron_entropic.rollout.types import Prompt, Rollout, RolloutError

MODEL = Path(__file__).parents[2] / "models" / "tiny-decompose"
EOS = 1
CONFIG = RolloutConfig(engine="local", max_new_tokens=16)
TEXTS = ["347=", "100=", "999=", "12=", "1+2+34567=", "=", "abc def\n"]


def prompts(texts: list[str] = TEXTS, first: int = 0) -> list[Prompt]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return [Prompt(first + i, text, tuple(tokenizer(text).input_ids)) for i, text in enumerate(texts)]


def engine(cfg: RolloutConfig = CONFIG, model_dir: Path = MODEL, seed: int = 0, dtype: str = "float32") -> LocalEngine:
    return LocalEngine(cfg, model_dir=model_dir, dtype=dtype, seed=seed)


def reference(model_dir: Path = MODEL) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


@torch.no_grad()
def teacher_forced(model: torch.nn.Module, rollout: Rollout, temperature: float) -> Tensor:
    """Log-probs of the response, one sequence at a time, without a cache."""
    ids_T = torch.tensor([*rollout.prompt_ids, *rollout.response_ids])
    log_pi_TV = (model(ids_T[None, :-1]).logits[0].float() / temperature).log_softmax(-1)
    return log_pi_TV[len(rollout.prompt_ids) - 1 :].gather(1, ids_T[len(rollout.prompt_ids) :, None])[:, 0]


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_log_probs_are_those_of_a_teacher_forced_forward(temperature: float) -> None:
    rollouts = engine(replace(CONFIG, temperature=temperature, max_new_tokens=7)).generate(prompts(), 16)
    model = reference()
    assert len({len(r.prompt_ids) for r in rollouts}) > 3
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        torch.testing.assert_close(torch.tensor(rollout.log_probs), teacher_forced(model, rollout, temperature), atol=1e-5, rtol=1e-5)


def test_records_are_complete_and_ordered() -> None:
    asked = prompts(first=40)
    rollouts = engine().generate(asked, 3)
    assert [(r.prompt_index, r.sample_index) for r in rollouts] == [(p.index, s) for p in asked for s in range(3)]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for rollout, prompt in zip(rollouts, [p for p in asked for _ in range(3)], strict=True):
        assert tuple(rollout.prompt_ids.tolist()) == prompt.token_ids
        assert len(rollout.log_probs) == len(rollout.response_ids) <= CONFIG.max_new_tokens
        assert (rollout.first_version, rollout.last_version, rollout.server) == (0, 0, "local")
        stopped = rollout.response_ids[-1] == EOS
        assert rollout.finish_reason == ("stop" if stopped else "length")
        assert EOS not in rollout.response_ids[:-1]
        assert rollout.text == tokenizer.decode(rollout.response_ids[: -1 if stopped else None])
        assert stopped or len(rollout.response_ids) == CONFIG.max_new_tokens


def test_samples_follow_the_models_distribution() -> None:
    """The first token of 4000 samples: every frequency within 5 standard deviations of its probability."""
    asked = prompts(["347="])
    temperature, samples = 1.3, 4000
    rollouts = engine(replace(CONFIG, temperature=temperature, max_new_tokens=1)).generate(asked, samples)
    with torch.no_grad():
        logits_V = reference()(torch.tensor([asked[0].token_ids])).logits[0, -1]
    pi_V = (logits_V / temperature).softmax(-1).double()
    counts_V = torch.bincount(torch.tensor([r.response_ids[0] for r in rollouts]), minlength=len(pi_V)).double()
    deviation_V = (counts_V - samples * pi_V).abs() / (samples * pi_V * (1 - pi_V)).sqrt().clamp(min=1)
    assert deviation_V.max() < 5
    assert (counts_V > 0).sum() > 5


def test_samples_of_a_prompt_do_not_depend_on_its_company() -> None:
    asked = prompts()
    together = engine().generate(asked, 4)
    for place in (0, 4, 6):
        alone = engine().generate([asked[place]], 4)
        assert [r.response_ids.tolist() for r in alone] == [r.response_ids.tolist() for r in together[4 * place : 4 * place + 4]]
    assert [r.response_ids.tolist() for r in engine().generate(asked[::-1], 2)][-2:] == [r.response_ids.tolist() for r in together[:2]]


def test_randomness_is_keyed_by_seed_index_sample_and_version() -> None:
    def responses(local: LocalEngine, first: int = 0) -> list[tuple[int, ...]]:
        return [tuple(r.response_ids.tolist()) for r in local.generate(prompts(["347="], first), 6)]

    base = responses(engine())
    assert len(set(base)) > 3
    assert responses(engine()) == base
    assert responses(engine(seed=1)) != base
    assert responses(engine(), first=1) != base
    moved = engine()
    moved.sync_weights(weights_of(reference()).items(), version=1)
    assert responses(moved) != base


def test_global_random_state_is_left_alone() -> None:
    local = engine()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    local.generate(prompts(), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_synced_weights_are_used_and_versions_recorded() -> None:
    changed = reference()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    local = engine()
    local.sync_weights(iter(weights_of(changed).items()), version=7)
    for rollout in local.generate(prompts(), 2):
        assert (rollout.first_version, rollout.last_version) == (7, 7)
        torch.testing.assert_close(torch.tensor(rollout.log_probs), teacher_forced(changed, rollout, 1.0), atol=1e-5, rtol=1e-5)


class Stream:
    """A weight stream that remembers whether it was read to its end."""

    def __init__(self, weights: list[tuple[str, Tensor]]) -> None:
        self.weights, self.drained = weights, False

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.weights
        self.drained = True


def test_every_misfit_is_listed_and_the_stream_drained() -> None:
    weights = weights_of(reference())
    weights.pop("model.layers.1.mlp.up_proj.weight")
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 2)
    stream = Stream([("model.layers.9.oops", torch.zeros(1)), *weights.items(), ("model.norm.weight", torch.ones(128))])
    local = engine()
    with pytest.raises(RolloutError) as caught:
        local.sync_weights(stream, version=3)
    assert stream.drained
    assert str(caught.value).splitlines() == [
        "local engine: weights of version 3 do not fit the model:",
        "  model.layers.9.oops: the model has no such weight",
        "  model.layers.0.mlp.up_proj.weight: shape (3, 2), the model's is (256, 128)",
        "  model.norm.weight: came twice",
        "  model.layers.1.mlp.up_proj.weight: missing",
    ]
    assert local.generate(prompts(["347="]), 1)[0].first_version == 0


def test_the_stream_is_drained_by_a_closed_engine_too() -> None:
    stream = Stream(list(weights_of(reference()).items()))
    local = engine()
    local.close()
    local.close()
    with pytest.raises(RolloutError, match="closed"):
        local.sync_weights(stream, version=1)
    assert stream.drained
    with pytest.raises(RolloutError, match="closed"):
        local.generate(prompts(), 1)


@pytest.fixture(scope="module")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model's shape with tied embeddings and other weights, the tokenizer beside it."""
    folder = tmp_path_factory.mktemp("tied")
    config = reference().config
    config.tie_word_embeddings = True
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "names", [("model.embed_tokens.weight",), ("lm_head.weight",), ("model.embed_tokens.weight", "lm_head.weight")]
)
def test_tied_weights_come_under_either_name_or_both(tied_model: Path, names: tuple[str, ...]) -> None:
    local, changed = engine(model_dir=tied_model), reference(tied_model)
    with torch.no_grad():
        changed.get_input_embeddings().weight.mul_(2)
    embedding = {"model.embed_tokens.weight", "lm_head.weight"}
    local.sync_weights(((n, w) for n, w in weights_of(changed).items() if n not in embedding or n in names), version=1)
    rollout = local.generate(prompts(["347="]), 1)[0]
    torch.testing.assert_close(torch.tensor(rollout.log_probs), teacher_forced(changed, rollout, 1.0), atol=1e-5, rtol=1e-5)


def test_tied_weights_that_differ_are_refused(tied_model: Path) -> None:
    weights = weights_of(reference(tied_model))
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    with pytest.raises(RolloutError, match=r"lm_head.weight: differs from model.embed_tokens.weight"):
        engine(model_dir=tied_model).sync_weights(weights.items(), version=1)


def test_bfloat16_weights_sample_with_float32_log_probs() -> None:
    rollouts = engine(dtype="bfloat16").generate(prompts(["347="]), 16)
    assert any(r.log_probs.tolist() != torch.tensor(r.log_probs).bfloat16().tolist() for r in rollouts)


def test_an_empty_batch_is_an_empty_list() -> None:
    assert engine().generate([], 8) == []


def test_logits_that_are_not_finite_are_an_error() -> None:
    weights = weights_of(reference())
    weights["model.norm.weight"][5] = float("nan")
    local = engine()
    local.sync_weights(weights.items(), version=1)
    with pytest.raises(RolloutError, match="not finite"):
        local.generate(prompts(), 1)


def test_bad_prompts_and_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=r"prompt 5 .*no tokens"):
        engine().generate([Prompt(5, "", ())], 1)
    with pytest.raises(RolloutError, match=r"prompt 5 has 500 tokens.*max_new_tokens=16.*max_position_embeddings=512"):
        engine().generate([Prompt(5, "", (4,) * 500)], 1)
    with pytest.raises(RolloutError, match="nowhere is not a directory"):
        engine(model_dir=tmp_path / "nowhere")
    with pytest.raises(RolloutError, match="'float8'"):
        engine(dtype="float8")


@pytest.mark.slow
def test_speed() -> None:
    """512 samples take about a second of one core; the bound leaves room for a busy machine."""
    asked = prompts([f"{n}=" for n in range(300, 364)])
    local = engine()
    started = time.process_time()
    rollouts = local.generate(asked, 8)
    assert len(rollouts) == 512
    assert time.process_time() - started < 5
