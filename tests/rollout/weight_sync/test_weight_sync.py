"""The order of an update, and that every failure names its server and still drains the weights. No server runs here."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from megatron_entropic.rollout.types import RolloutError
from megatron_entropic.rollout.weight_sync.buckets import Bucket
from megatron_entropic.rollout.weight_sync.checksum import weights_checksum
from megatron_entropic.rollout.weight_sync.sync import Call, WeightSync, call_together

WEIGHTS = [(f"w{i}", torch.full((4,), float(i))) for i in range(5)]
STEPS = ["/pause?mode=keep", "/start_weight_update", "/update_weights", "/finish_weight_update", "/collective_rpc"]


class FakeServer:
    """Answers like a server that received WEIGHTS; `fail` and `hang` name the path at which it breaks."""

    def __init__(self, index: int, fail: str = "", hang: str = "", checksum: str | None = None) -> None:
        self.name = f"vllm_{index}"
        self.fail, self.hang = fail, hang
        self.checksum = checksum or weights_checksum(WEIGHTS)
        self.calls: list[tuple[str, Any]] = []

    def __str__(self) -> str:
        return f"rollout server {self.name}"

    def last_words(self) -> str:
        return "; log"

    def call(self, method: str, path: str, *, timeout_s: float, json: Any = None) -> Any:
        self.calls.append((path, json))
        if path == self.fail:
            raise RolloutError(f"{self} failed")
        if path == self.hang:
            threading.Event().wait(5.0)
        return {"/collective_rpc": {"results": [self.checksum]}, "/reset_prefix_cache": {"success": True}}.get(path, {})


class FakeTransport:
    bucket_bytes = 32

    def __init__(self) -> None:
        self.sent: list[str] = []

    def connect(self, servers: Sequence[Any], timeout_s: float) -> dict[str, Call]:
        return {}

    def broadcast(self, bucket: Bucket) -> dict[str, Call]:
        return {"trainer": lambda: self.sent.extend(name for name, _ in bucket)}

    def close(self) -> None: ...


class Weights:
    """WEIGHTS, which know whether they were read to the end."""

    drained = False

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from WEIGHTS
        self.drained = True


def make_sync(*servers: FakeServer, timeout_s: float = 5.0) -> WeightSync:
    return WeightSync(servers, FakeTransport(), timeout_s)  # type: ignore[arg-type]


def test_an_update_takes_its_steps_in_order() -> None:
    servers = FakeServer(0), FakeServer(1)
    sync = make_sync(*servers)
    assert sync.send(WEIGHTS, 7) == weights_checksum(WEIGHTS)
    for server in servers:
        paths = [path for path, _ in server.calls]
        assert paths == [*STEPS[:2], *["/update_weights"] * 3, *STEPS[3:], "/reset_prefix_cache", "/resume"]
        manifests = [json["update_info"]["names"] for path, json in server.calls if path == "/update_weights"]
        assert manifests == [["w0", "w1"], ["w2", "w3"], ["w4"]]
        assert dict(server.calls)["/finish_weight_update"] == {"weight_version": "7"}
    assert sync.transport.sent == [name for name, _ in WEIGHTS]  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", [*STEPS, "/reset_prefix_cache", "/resume"])
def test_a_failing_server_is_named_and_the_weights_are_drained(step: str) -> None:
    weights = Weights()
    with pytest.raises(RolloutError, match="vllm_1 failed"):
        make_sync(FakeServer(0), FakeServer(1, fail=step)).send(weights, 1)
    assert weights.drained


@pytest.mark.parametrize("step", STEPS)
def test_a_hung_server_is_named_in_time_and_the_weights_are_drained(step: str) -> None:
    weights = Weights()
    began = time.monotonic()
    with pytest.raises(RolloutError, match=r"rollout\.sync_timeout_s") as raised:
        make_sync(FakeServer(0), FakeServer(1, hang=step), timeout_s=0.3).send(weights, 1)
    assert time.monotonic() - began < 2.0
    assert "vllm_1" in str(raised.value)
    assert "vllm_0" not in str(raised.value)
    assert weights.drained


def test_other_weights_are_refused_before_the_server_resumes() -> None:
    wrong = FakeServer(1, checksum="0000-5")
    with pytest.raises(RolloutError, match=r"vllm_1 holds other weights than were sent as version 3.*0000-5"):
        make_sync(FakeServer(0), wrong).send(WEIGHTS, 3)
    assert "/resume" not in dict(wrong.calls)


def test_an_error_of_the_weights_themselves_is_passed_on() -> None:
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield WEIGHTS[0]
        raise ZeroDivisionError("gather failed")

    server = FakeServer(0)
    with pytest.raises(ZeroDivisionError, match="gather failed"):
        make_sync(server).send(broken(), 1)
    assert "/finish_weight_update" not in dict(server.calls)


def test_calls_run_at_one_time_and_report_in_their_own_order() -> None:
    meeting = threading.Barrier(3, timeout=5.0)
    calls = {name: lambda name=name: (meeting.wait(), name)[1] for name in "abc"}
    assert list(call_together(calls, time.monotonic() + 5.0).items()) == [("a", "a"), ("b", "b"), ("c", "c")]  # type: ignore[union-attr]


def test_the_next_bucket_is_gathered_while_one_is_sent() -> None:
    gathered = [threading.Event() for _ in WEIGHTS]

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for event, weight in zip(gathered, WEIGHTS, strict=True):
            event.set()
            yield weight

    class Waiting(FakeTransport):
        """A bucket arrives only when the first weight of the next but one has been asked for, which closes the next."""

        def broadcast(self, bucket: Bucket) -> dict[str, Call]:
            last = [name for name, _ in WEIGHTS].index(bucket[-1][0])
            after = gathered[min(last + 3, len(WEIGHTS) - 1)]
            return super().broadcast(bucket) | {"link": lambda: after.wait(5.0) or pytest.fail("nothing was gathered meanwhile")}

    transport = Waiting()
    assert WeightSync([FakeServer(0)], transport, 10.0).send(stream(), 1) == weights_checksum(WEIGHTS)  # type: ignore[list-item]
    assert transport.sent == [name for name, _ in WEIGHTS]
