"""Two real vLLM servers: what they sample, what they serve after an update, who may speak to them, and a hung one (last)."""

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import torch
from transformers import PreTrainedModel

from megatron_entropic.config import TrackingConfig
from megatron_entropic.observability.prometheus import PrometheusEndpoint
from megatron_entropic.rollout.types import Prompt, Rollout, RolloutError, SamplingParameters
from megatron_entropic.rollout.vllm.fleet import VLLMFleet
from megatron_entropic.rollout.weight_sync.checksum import weights_checksum
from tests.observability.test_prometheus import free_port, scrape
from tests.rollout.vllm.served import served_versions, weight_checksums
from tests.rollout.vllm.vllm_world import (
    EOS,
    becomes_true,
    changed,
    fleet_of,
    group_members,
    kill_group,
    load,
    worst_log_prob_error,
    write_model,
)

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPTS = [Prompt(index, "", tuple(2 + (index * 7 + place * 3) % 95 for place in range(1 + index % 9))) for index in range(10, 26)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return load(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def fleet(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMFleet]:
    fleet = fleet_of(Path(model.name_or_path), tmp_path_factory.mktemp("logs"), servers=2)
    fleet.stats = True  # as make_fleet has it for tracking.prometheus_port
    assert fleet.metrics_servers == [], "none has proved who it is"
    groups: list[int] = []
    try:
        began = time.monotonic()
        fleet.start()
        print(f"two servers ready after {time.monotonic() - began:.1f} s")
        groups = [server.pid for server in fleet.servers if server.pid]
        yield fleet
    finally:
        fleet.close()
    assert becomes_true(lambda: not any(group_members(group) for group in groups), 10.0), "close() left processes"


def test_rollouts_are_ordered_complete_and_repeatable(fleet: VLLMFleet) -> None:
    rollouts = fleet.generate(PROMPTS, 4)
    assert [(r.prompt_index, r.sample_index) for r in rollouts] == [(p.index, j) for p in PROMPTS for j in range(4)]
    assert {r.server for r in rollouts} == {"vllm_0", "vllm_1"}
    for rollout in rollouts:
        stopped = rollout.finish_reason == "stop"
        assert len(rollout.log_probs) == len(rollout.response_ids) <= 8
        assert (rollout.response_ids[-1] == EOS) == stopped
        assert EOS not in rollout.response_ids[:-1]
        assert stopped or len(rollout.response_ids) == 8
        assert len(rollout.text) == len(rollout.response_ids) - stopped or "<" in rollout.text
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    finished: list[Sequence[Rollout]] = []
    again = fleet.generate(PROMPTS, 4, finished.append)
    assert [r.response_ids.tolist() for r in again] == [r.response_ids.tolist() for r in rollouts]
    # Each prompt's rollouts, whole and as soon as they are there: verification runs beside the rest.
    assert sorted(group[0].prompt_index for group in finished) == sorted(prompt.index for prompt in PROMPTS)
    assert {id(rollout) for group in finished for rollout in group} == set(map(id, again))


def test_samples_differ_and_nothing_truncates_the_distribution(fleet: VLLMFleet) -> None:
    same = [Prompt(index, "", (7, 8, 9)) for index in range(40)]
    rollouts = fleet.generate(same, 8)
    assert len({tuple(r.response_ids.tolist()) for r in rollouts}) > 250  # other seeds for every prompt and sample
    assert len({int(r.response_ids[0]) for r in rollouts}) > 10  # generation_config.json asks for top_k=3


def test_log_probs_are_those_of_transformers_at_the_sampling_temperature(fleet: VLLMFleet, model: PreTrainedModel) -> None:
    assert worst_log_prob_error(model, fleet.generate(PROMPTS, 4)) < 1e-4


def test_more_samples_than_one_request_may_ask_for(fleet: VLLMFleet) -> None:
    few, many = fleet.generate(PROMPTS[:1], 3), fleet.generate(PROMPTS[:1], 70)
    assert [r.response_ids.tolist() for r in many[:3]] == [r.response_ids.tolist() for r in few]
    assert [r.sample_index for r in many] == list(range(70))


def test_validation_samples_otherwise_and_leaves_trainings_samples_alone(fleet: VLLMFleet, model: PreTrainedModel) -> None:
    before = fleet.generate(PROMPTS, 4)
    nucleus = SamplingParameters(temperature=0.7, top_p=0.5, max_new_tokens=12, seed=2**63 - 1)
    validated = fleet.generate(PROMPTS, 3, sampling=nucleus)
    greedy = fleet.generate(PROMPTS, 1, sampling=SamplingParameters(0.0, 1.0, 12, 1))
    assert fleet.generate(PROMPTS, 4) == before  # bit for bit, log-probs too
    again = fleet.generate(PROMPTS[4:], 3, sampling=nucleus)  # beside other prompts, the same
    assert [r.response_ids.tolist() for r in again] == [r.response_ids.tolist() for r in validated[12:]]
    assert max(len(r.response_ids) for r in validated) == 12
    log_pi_V = likeliest_after(model, PROMPTS[0].token_ids)
    assert greedy[0].response_ids[0] == int(log_pi_V.argmax())
    drawn = {int(r.response_ids[0]) for r in fleet.generate(PROMPTS[:1], 60, sampling=nucleus)}
    probability_V = (log_pi_V / 0.7).softmax(-1)
    assert len(drawn) > 1
    assert max(float(probability_V[probability_V > probability_V[token]].sum()) for token in drawn) < 0.5 + 1e-4


def likeliest_after(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0, -1].float().log_softmax(-1)  # type: ignore[no-any-return]


def test_many_prompts_at_once(fleet: VLLMFleet) -> None:
    prompts = [Prompt(index, "", tuple(2 + place for place in range(40))) for index in range(300)]
    assert len(fleet.generate(prompts, 8)) == 2400  # more tokens than one prefill step takes


def test_a_prompt_that_does_not_fit_is_named(fleet: VLLMFleet) -> None:
    assert fleet.max_model_len == 512  # the model's, although 4096 was asked for
    with pytest.raises(RolloutError, match=r"prompt 3 has 505 tokens.*max_new_tokens=8.*512"):
        fleet.generate([Prompt(3, "", (5,) * 505)], 1)
    with pytest.raises(RolloutError, match="prompt 4 has 0 tokens"):
        fleet.generate([Prompt(4, "", ())], 1)


def test_servers_serve_exactly_the_weights_of_each_update(
    fleet: VLLMFleet, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fleet._sync is not None
    monkeypatch.setattr(fleet._sync.transport, "bucket_bytes", 20_000)  # several buckets
    original = [(name, weight.detach().clone()) for name, weight in model.named_parameters()]
    before = fleet.generate(PROMPTS, 4)
    assert weight_checksums(fleet) == {"vllm_0": "initial", "vllm_1": "initial"}
    assert {(r.first_version, r.last_version) for r in before} == {(0, 0)}
    other = load(Path(model.name_or_path))
    for version, weights in ((1, changed(model, 1)), (2, changed(model, 2)), (7, original)):
        fleet.sync_weights(iter(weights), version)
        other.load_state_dict(dict(weights))
        after = fleet.generate(PROMPTS, 4)
        assert served_versions(fleet) == {"vllm_0": version, "vllm_1": version}
        assert set(weight_checksums(fleet).values()) == {weights_checksum(weights)}
        assert {(r.first_version, r.last_version) for r in after} == {(version, version)}
        assert worst_log_prob_error(other, after) < 1e-4
    assert [r.response_ids.tolist() for r in after] == [r.response_ids.tolist() for r in before]


def test_updates_leave_the_callers_tensors_alone(fleet: VLLMFleet, model: PreTrainedModel) -> None:
    weights = [(name, weight.detach().clone()) for name, weight in model.named_parameters()]
    fleet.sync_weights(weights, 8)
    assert all(torch.equal(weight, dict(model.named_parameters())[name]) for name, weight in weights)


def test_every_endpoint_but_health_needs_the_key(fleet: VLLMFleet) -> None:
    server = fleet.servers[0]
    paths = server.call("GET", "/openapi.json", timeout_s=30.0)["paths"]
    assert {"/update_weights", "/collective_rpc", "/pause", "/inference/v1/generate", "/v1/completions"} <= set(paths)
    other_key = {"Authorization": f"Bearer {fleet.servers[1].key}"}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30.0) as client:
        for path, methods in (paths | {"/metrics": {"get": 0}, "/docs": {"get": 0}, "/nothing": {"get": 0}}).items():
            for method in (*methods, "options"):
                for headers in ({}, other_key, {"Authorization": server.key}):
                    status = client.request(method, path, headers=headers).status_code
                    assert (status != 401) if path == "/health" else (status == 401), (method, path, headers)


def test_their_metrics_are_scraped_through_the_trainers_endpoint(fleet: VLLMFleet) -> None:
    """With the key, which whoever scrapes the endpoint does not need."""
    for server in fleet.servers:
        assert httpx.get(f"{server.url}/metrics", timeout=60).status_code == 401
    cfg = TrackingConfig(prometheus_port=free_port(), prometheus_timeout_s=60)
    endpoint = PrometheusEndpoint(cfg, "run", 3, lambda: fleet.metrics_servers)
    try:
        fleet.generate(PROMPTS, 4)
        samples = scrape(endpoint.port)
    finally:
        endpoint.close()
    sums = {}
    for name in ("vllm_0", "vllm_1"):
        of_server = {sample: value for (sample, labels), value in samples.items() if {("run", "run"), ("server", name)} <= labels}
        assert of_server["entropic_server_up"] == 1
        assert of_server["vllm:num_requests_running"] == 0
        sums[name] = of_server["vllm:generation_tokens_total"]
    assert min(sums.values()) > 0


def test_no_process_shows_the_key(fleet: VLLMFleet) -> None:
    for server in fleet.servers:
        assert server.pid
        for pid in group_members(server.pid):
            assert server.key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert server.key not in server.log_path.read_text(errors="replace")


def test_a_server_that_hangs_during_an_update_is_named_in_time(fleet: VLLMFleet, model: PreTrainedModel) -> None:
    """Last in this file: the fleet is of no use afterwards."""
    assert fleet._sync is not None
    fleet._sync.timeout_s = 6.0
    fleet._sync.transport.bucket_bytes = 20_000
    hung = fleet.servers[1]
    assert hung.pid
    drained = False

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal drained
        for place, item in enumerate(changed(model, 3)):
            if place == 5:
                kill_group(hung.pid or 0, signal.SIGSTOP)
            yield item
        drained = True

    began = time.monotonic()
    with pytest.raises(RolloutError, match=rf"rollout server 1 \({hung.url}, pid {hung.pid}, running\)"):
        fleet.sync_weights(weights(), 9)
    assert time.monotonic() - began < 6.0 + 10.0
    assert drained
    with pytest.raises(RolloutError, match="must not be used any more: the update to weight version 9"):
        fleet.generate(PROMPTS, 1)
    again = iter(changed(model, 3))
    with pytest.raises(RolloutError, match="must not be used any more"):
        fleet.sync_weights(again, 10)
    assert next(again, None) is None
