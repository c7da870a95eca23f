"""Which server, seed and parameters a prompt gets, and what of a server's answer is believed."""

from typing import Any

import msgspec
import pytest

from megatron_entropic.rollout.types import Prompt, RolloutError
from megatron_entropic.rollout.vllm.sampling import (
    CompletionChoice,
    SamplingRequest,
    assign,
    first_seed,
    parse_choice,
    request_body,
)


def prompt(index: int, length: int = 3) -> Prompt:
    return Prompt(index, "", tuple(range(2, 2 + length)))


@pytest.mark.parametrize(("prompts", "servers"), [(7, 3), (64, 2), (2, 5), (0, 2)])
def test_servers_get_equal_numbers_of_prompts(prompts: int, servers: int) -> None:
    counts = [assign([prompt(i) for i in range(prompts)], servers).count(server) for server in range(servers)]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == prompts


def test_long_prompts_are_dealt_out_evenly() -> None:
    lengths = [50, 1, 1, 50, 1, 1, 50, 50]
    placed = assign([prompt(i, length) for i, length in enumerate(lengths)], 2)
    assert [sum(length for length, at in zip(lengths, placed, strict=True) if at == server) for server in (0, 1)] == [102, 102]


def test_seeds_differ_between_prompts_samples_and_runs() -> None:
    seeds = {first_seed(seed, index) + sample for seed in range(3) for index in range(500) for sample in range(16)}
    assert len(seeds) == 3 * 500 * 16
    assert max(seeds) < 2**63
    assert first_seed(0, 7) == first_seed(0, 7)


def test_nothing_but_the_temperature_shapes_the_distribution() -> None:
    body = request_body(prompt(4), SamplingRequest(0, 8, 0.7, 16, 1.0, (1, 7)), 2, 3)
    params = body["sampling_params"]
    assert body["token_ids"] == [2, 3, 4]
    assert (params["n"], params["seed"]) == (3, first_seed(0, 4) + 2)
    assert (params["temperature"], params["top_p"], params["top_k"], params["min_p"], params["max_tokens"]) == (0.7, 1.0, 0, 0.0, 16)
    assert not {"stop", "repetition_penalty", "presence_penalty", "frequency_penalty"} & set(params)
    assert (params["stop_token_ids"], params["ignore_eos"]) == ([1, 7], True), "stops are ours, not those of the server's files"


def choice(**changes: Any) -> dict[str, Any]:
    good = {
        "index": 0,
        "token_ids": [5, 1],
        "logprobs": {"content": [{"token_id": 5, "logprob": -0.5}, {"token_id": 1, "logprob": -1.5}]},
        "finish_reason": "stop",
        "weight_versions": [{"version": "3", "start": 0, "end": 1}, {"version": "4", "start": 1, "end": 2}],
    }
    return good | changes


def test_a_choice_is_read() -> None:
    sampled = parse_choice(msgspec.convert(choice(), CompletionChoice), "here")
    assert (sampled.token_ids.tolist(), sampled.log_probs.tolist(), sampled.finish_reason) == ([5, 1], [-0.5, -1.5], "stop")
    assert (sampled.first_version, sampled.last_version) == (3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": []}, "0 tokens"),
        ({"logprobs": None}, "log-probs of 0"),
        ({"logprobs": {"content": [{"token_id": 5, "logprob": -0.5}]}}, "log-probs of 1"),
        ({"logprobs": {"content": [{"token_id": 5, "logprob": -0.5}, {"token_id": 2, "logprob": -1.5}]}}, "log-probs"),
        ({"logprobs": {"content": [{"token_id": 5, "logprob": -9999.0}, {"token_id": 1, "logprob": -1.5}]}}, "token 0.*-9999"),
        ({"logprobs": {"content": [{"token_id": 5, "logprob": -1.0}, {"token_id": 1, "logprob": float("nan")}]}}, "token 1.*nan"),
        ({"finish_reason": "abort"}, "'abort'"),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RolloutError, match=rf"^server 1, prompt 9: .*{message}"):
        parse_choice(msgspec.convert(choice(**changes), CompletionChoice), "server 1, prompt 9")


@pytest.mark.parametrize(
    ("sequences", "samples", "requests"),
    [(256, 1, 64), (256, 8, 40), (256, 16, 20), (256, 64, 5), (256, 1000, 5), (1024, 8, 160), (32, 1000, 2), (1, 8, 1)],
)
def test_a_server_is_kept_busy_and_its_queue_short(sequences: int, samples: int, requests: int) -> None:
    asked = SamplingRequest(0, samples, 1.0, 16, 1.0, (1,), sequences)
    assert asked.requests_at_once == requests
    assert asked.samples_at_once == min(64, sequences)
