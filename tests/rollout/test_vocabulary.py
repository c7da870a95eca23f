"""Ids that are no token: they show in a text, are counted, and never make an answer right."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_entropic.config import RewardConfig, RolloutConfig, TaskConfig
from megatron_entropic.rollout.local_engine import LocalEngine
from megatron_entropic.rollout.prompt_encoder import load_tokenizer
from megatron_entropic.rollout.scoring import Scorer
from megatron_entropic.rollout.types import Prompt, Rollout
from megatron_entropic.rollout.vocabulary import NO_TOKEN, Vocabulary
from megatron_entropic.tasks import make_task
from tests.rollout.tokens import one_token_rollout
from tests.tiny_models import TINY_DECOMPOSE, edit_config

TOKENS = 99


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(load_tokenizer(TINY_DECOMPOSE))


def ids_of(vocabulary: Vocabulary, text: str) -> tuple[int, ...]:
    return tuple(vocabulary.tokenizer.encode(text, add_special_tokens=False))


def rollout_of(vocabulary: Vocabulary, ids: tuple[int, ...], finish_reason: str = "stop") -> Rollout:
    text = vocabulary.response_text(ids, finish_reason)
    return dataclasses.replace(one_token_rollout(0, 0, text), response_ids=np.array(ids, dtype=np.int32), finish_reason=finish_reason)


def test_an_id_that_is_no_token_shows_in_the_text(vocabulary: Vocabulary) -> None:
    four, two = ids_of(vocabulary, "4"), ids_of(vocabulary, "2")
    assert vocabulary.response_text((*four, *two, 1), "stop") == "42"
    assert vocabulary.response_text((*four, TOKENS, TOKENS + 1000, *two), "length") == f"4{NO_TOKEN}{NO_TOKEN}2"
    assert vocabulary.response_text((TOKENS,), "length") == NO_TOKEN
    assert vocabulary.response_text((1,), "stop") == ""


def test_holes_of_a_tokenizer_are_no_tokens_and_the_stopping_id_need_not_be_one() -> None:
    class Sparse:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 3}

        def decode(self, ids: list[int], **_: bool) -> str:
            return "".join("a__b"[id_] for id_ in ids)

    vocabulary = Vocabulary(Sparse())  # type: ignore[arg-type]
    rollout = rollout_of(vocabulary, (0, 1, 3, 4, 9))
    assert (rollout.text, vocabulary.count_unknown(rollout)) == (f"a{NO_TOKEN}b{NO_TOKEN}", 2)
    assert vocabulary.count_unknown(rollout_of(vocabulary, (0, 9), "length")) == 1


@pytest.mark.parametrize("name", ["decompose", "math"])  # judged here, and in processes
def test_a_right_answer_with_such_an_id_scores_0_and_is_counted(
    name: str, vocabulary: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "problems.jsonl").write_text(json.dumps({"problem": "6 times 7?", "answer": "42"}) + "\n")
    options = {"path": str(tmp_path / "problems.jsonl")} if name == "math" else {}
    cfg = TaskConfig(name=name, options=options)  # type: ignore[arg-type]
    task = make_task(cfg, 0)
    problem = task.problem(0)
    right = r"\boxed{42}" if name == "math" else f"{problem.data['total']}+0"
    ids = ids_of(vocabulary, right)
    answers = [rollout_of(vocabulary, (*ids, *end)) for end in [(1,), (TOKENS, 1), (TOKENS + 5, TOKENS, 1)]]
    answers.append(rollout_of(vocabulary, (TOKENS, *ids), "length"))
    scorer = Scorer(task, cfg, 0, RewardConfig(workers=1), vocabulary)
    try:
        for step in (0, 1):
            scores = scorer.finish(step, answers, {0: problem})
            assert scores.rewards == [1.0, 0.0, 0.0, 0.0]
            assert scores.metrics["rollout/unknown_tokens"] == 4
    finally:
        scorer.close()
    assert [record.getMessage()[:24] for record in caplog.records] == ["step 1: 3 of 4 answers h"]


def test_the_local_engine_samples_them_with_their_exact_log_probs(vocabulary: Vocabulary, tmp_path: Path) -> None:
    longer = shutil.copytree(TINY_DECOMPOSE, tmp_path / "longer")
    edit_config(longer, vocab_size=128)
    weights = load_file(longer / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], weights[name][40:69]])
    save_file(weights, longer / "model.safetensors", metadata={"format": "pt"})
    engine = LocalEngine(RolloutConfig(engine="local", max_new_tokens=6), model_dir=longer, dtype="float32", seed=0)
    rollouts = engine.generate([Prompt(0, "", ids_of(vocabulary, "7="))], 200)
    unknown = [rollout for rollout in rollouts if vocabulary.count_unknown(rollout)]
    assert unknown
    for rollout in unknown:
        assert rollout.text.count(NO_TOKEN) == vocabulary.count_unknown(rollout)
        ids = torch.tensor([[*rollout.prompt_ids.tolist(), *rollout.response_ids.tolist()]])
        log_probs_TV = engine._open_model()(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)
        expected_T = log_probs_TV.gather(1, torch.tensor(rollout.response_ids.tolist())[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(rollout.log_probs), expected_T, rtol=0, atol=1e-4)
