"""The trainer's end of weight synchronisation: stream the weights to every server, bucket by bucket, and prove what arrived.

One update: pause and open all servers; for each bucket send its manifest (/update_weights) and its bytes (gloo or NCCL) at
the same time, and gather the next one meanwhile; commit with the version; compare every server's checksum with the sender's;
drop prefix caches; resume.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from megatron_entropic.rollout.types import NamedWeights, RolloutError, ServerLostError
from megatron_entropic.rollout.vllm.client import ServerClient
from megatron_entropic.rollout.weight_sync.buckets import Bucket, buckets, manifest
from megatron_entropic.rollout.weight_sync.checksum import WeightsChecksum

Call = Callable[[], Any]


class Transport(Protocol):
    """Moves bucket bytes to servers that were told to expect them. `connect` and `broadcast` give calls to make at one time."""

    bucket_bytes: int

    def connect(self, servers: Sequence[ServerClient], timeout_s: float) -> dict[str, Call]: ...

    def broadcast(self, bucket: Bucket) -> dict[str, Call]: ...

    def close(self) -> None: ...


class WeightSync:
    """Updates the weights of all servers together. Driven by one process; no collective of the trainer's ranks."""

    def __init__(self, servers: Sequence[ServerClient], transport: Transport, timeout_s: float) -> None:
        self.servers = servers
        self.transport = transport
        self.timeout_s = timeout_s

    def connect(self) -> None:
        """Joins the sender with every worker of every server. Raises RolloutError naming a server that does not join."""
        self._together(self.transport.connect(self.servers, self.timeout_s), time.monotonic() + self.timeout_s)

    def send(self, weights: NamedWeights, version: int) -> str:
        """Replaces every server's weights by `weights` as `version`; returns their checksum.

        `weights` is read to its end in any case, because producing it is collective over the trainer's ranks. Raises
        RolloutError naming the server that failed, did not finish in time, or holds other weights; servers may then be
        paused with half an update, and must not be used again.
        """
        stream = iter(weights)
        try:
            return self._update(stream, version, time.monotonic() + self.timeout_s)
        finally:
            for _ in stream:
                pass

    def _update(self, weights: NamedWeights, version: int, deadline: float) -> str:
        self._post("/pause?mode=keep", deadline)
        self._post("/start_weight_update", deadline)
        checksum = WeightsChecksum()
        gathered = buckets(weights, self.transport.bucket_bytes)
        bucket = next(gathered, None)
        while bucket is not None:
            sending = self._send_bucket(bucket, deadline)
            checksum.update(bucket)
            bucket = next(gathered, None)  # while the one before is on its way
            self._finish(sending, deadline)
        self._post("/finish_weight_update", deadline, {"weight_version": str(version)})
        self._compare(checksum.hexdigest(), version, deadline)
        self.drop_prefix_caches(deadline)
        self._post("/resume", deadline)
        return checksum.hexdigest()

    def drop_prefix_caches(self, deadline: float | None = None) -> None:
        """Has every server forget keys and values of earlier prompts. Raises RolloutError naming one that does not."""
        answers = self._post("/reset_prefix_cache", deadline or time.monotonic() + self.timeout_s)
        for server in self.servers:
            if not answers[server.name]["success"]:
                raise RolloutError(f"{server} could not drop its prefix cache, which holds keys and values of older weights or prompts")

    def _send_bucket(self, bucket: Bucket, deadline: float) -> "CallsUnderWay":
        calls = self._calls("/update_weights", deadline, {"update_info": manifest(bucket)})
        return CallsUnderWay(calls | self.transport.broadcast(bucket))

    def checksums(self, deadline: float | None = None) -> dict[str, list[str]]:
        """By server name, the checksum of what each of its workers received last."""
        deadline = deadline or time.monotonic() + self.timeout_s
        answers = self._post("/collective_rpc", deadline, {"method": "received_checksum"})
        return {name: answer["results"] for name, answer in answers.items()}

    def _compare(self, expected: str, version: int, deadline: float) -> None:
        checksums = self.checksums(deadline)
        for server in self.servers:
            received = checksums[server.name]
            if set(received) != {expected}:
                raise RolloutError(f"{server} holds other weights than were sent as version {version}: {received}, sent {expected}")

    def _post(self, path: str, deadline: float, json: Any = None) -> dict[str, Any]:
        return self._together(self._calls(path, deadline, json), deadline)

    def _calls(self, path: str, deadline: float, json: Any = None) -> dict[str, Call]:
        left = max(deadline - time.monotonic(), 0.001)
        return {server.name: functools.partial(server.call, "POST", path, timeout_s=left, json=json) for server in self.servers}

    def _together(self, calls: Mapping[str, Call], deadline: float) -> dict[str, Any]:
        return self._finish(CallsUnderWay(calls), deadline)

    def _finish(self, calls: "CallsUnderWay", deadline: float) -> dict[str, Any]:
        results = calls.finish(deadline)
        if isinstance(results, dict):
            return results
        raise ServerLostError(self._diagnosis(results))

    def _diagnosis(self, unfinished: Iterable[str]) -> str:
        waiting = [server for server in self.servers if any(name.startswith(server.name) for name in unfinished)]
        text = "\n".join(f"{server}{server.last_words()}" for server in waiting or self.servers)
        return f"a weight update did not finish within {self.timeout_s:g} s (rollout.sync_timeout_s); waiting for:\n{text}"

    def close(self) -> None:
        self.transport.close()


class CallsUnderWay:
    """Calls that run at one time, each in a thread. A thread that hangs does not outlive the process."""

    def __init__(self, calls: Mapping[str, Call]) -> None:
        self._names = list(calls)
        self._done: queue.Queue[tuple[str, Any, BaseException | None]] = queue.Queue()
        for name, call in calls.items():
            threading.Thread(target=self._run, args=(name, call), name=name, daemon=True).start()

    def _run(self, name: str, call: Call) -> None:
        try:
            self._done.put((name, call(), None))
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._done.put((name, None, error))

    def finish(self, deadline: float) -> dict[str, Any] | list[str]:
        """All results by name, or at `deadline` the names of those still running.

        Raises the first error that occurs, without waiting for the others.
        """
        results: dict[str, Any] = {}
        while len(results) < len(self._names):
            try:
                name, result, error = self._done.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                return sorted(set(self._names) - set(results))
            if error is not None:
                raise error
            results[name] = result
        return {name: results[name] for name in self._names}


def call_together(calls: Mapping[str, Call], deadline: float) -> dict[str, Any] | list[str]:
    """Makes all calls at one time; returns and raises what `CallsUnderWay.finish` does."""
    return CallsUnderWay(calls).finish(deadline)
