"""Sampling from several vLLM servers at once: token ids in, token ids and log-probs out (/inference/v1/generate)."""

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from megatron_entropic.rollout.server_client import ServerClient
from megatron_entropic.rollout.server_command import MODEL_NAME
from megatron_entropic.rollout.types import Prompt, RolloutError

MAX_CONCURRENT_REQUESTS = 64
"""Requests in flight per server; the server queues what exceeds its --max-num-seqs."""

MAX_SAMPLES_PER_REQUEST = 64
"""More samples of one prompt go into several requests; a request may not exceed the server's --max-num-seqs."""

_LOWEST_LOG_PROB = -9999.0  # what vLLM writes for -inf and NaN


@dataclass(frozen=True)
class SamplingRequest:
    """What to ask of every prompt. `seed` is the run's; `timeout_s` bounds one HTTP request."""

    seed: int
    samples: int
    temperature: float
    max_new_tokens: int
    timeout_s: float


@dataclass(frozen=True)
class Sampled:
    """One response as a server reports it; see Rollout for the fields."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str
    first_version: int
    last_version: int


def assign(prompts: Sequence[Prompt], servers: int) -> list[int]:
    """The server of each prompt: numbers differ by at most one, and long prompts are dealt out evenly. Deterministic."""
    longest_first = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place].token_ids), place))
    server_of = [0] * len(prompts)
    for turn, place in enumerate(longest_first):
        server_of[place] = turn % servers
    return server_of


def first_seed(seed: int, prompt_index: int) -> int:
    """Seed of sample 0 of a prompt; sample j has this plus j (vLLM does the same within a request). Fits a signed int64."""
    digest = hashlib.blake2b(f"{seed}/{prompt_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


T = TypeVar("T")
Accept = Callable[[Prompt, ServerClient, Sequence[Sampled]], T]
"""What becomes of a prompt's samples, in order, and the server that gave them; called in a thread beside the requests."""


def sample(servers: Sequence[ServerClient], prompts: Sequence[Prompt], request: SamplingRequest, accept: Accept[T]) -> list[T]:
    """What `accept` made of each prompt's samples as they came, in the order of the prompts. Raises RolloutError naming the server."""
    return asyncio.run(_sample(servers, prompts, request, accept))


async def _sample(servers: Sequence[ServerClient], prompts: Sequence[Prompt], request: SamplingRequest, accept: Accept[T]) -> list[T]:
    async with contextlib.AsyncExitStack() as stack:
        routes = [await stack.enter_async_context(_Route(server, request)) for server in servers]
        try:
            async with asyncio.TaskGroup() as tasks:
                answers = [
                    tasks.create_task(routes[server].sample(prompt, accept))
                    for prompt, server in zip(prompts, assign(prompts, len(servers)), strict=True)
                ]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
    return [answer.result() for answer in answers]


class _Route:
    """The way to one server: its connections, and how many requests may use them at one time."""

    def __init__(self, server: ServerClient, request: SamplingRequest) -> None:
        self.server = server
        self.request = request
        self.slots = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)
        self.client = httpx.AsyncClient(
            base_url=server.url,
            headers=server.headers,
            timeout=request.timeout_s,
            limits=httpx.Limits(max_connections=MAX_CONCURRENT_REQUESTS),
            trust_env=False,
        )

    async def __aenter__(self) -> "_Route":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def sample(self, prompt: Prompt, accept: Accept[T]) -> T:
        samples: list[Sampled] = []
        for first in range(0, self.request.samples, MAX_SAMPLES_PER_REQUEST):
            count = min(MAX_SAMPLES_PER_REQUEST, self.request.samples - first)
            samples += await self._request(prompt, first, count)
        return await asyncio.to_thread(accept, prompt, self.server, samples)

    async def _request(self, prompt: Prompt, first: int, count: int) -> list[Sampled]:
        body = request_body(prompt, self.request, first, count)
        async with self.slots:
            try:
                response = await self.client.post("/inference/v1/generate", json=body)
            except httpx.HTTPError as error:
                raise self.server.failed(f"a request for prompt {prompt.index}", error) from error
        if response.status_code != 200:
            reason = f"{response.status_code}: {response.text[:500]}{self.server.last_words()}"
            raise RolloutError(f"{self.server} refused prompt {prompt.index} with {reason}")
        choices = sorted(response.json()["choices"], key=lambda choice: int(choice["index"]))
        if len(choices) != count:
            raise RolloutError(f"{self.server} returned {len(choices)} samples of prompt {prompt.index}; {count} were asked for")
        return [parse_choice(choice, f"{self.server}, prompt {prompt.index}") for choice in choices]


def request_body(prompt: Prompt, request: SamplingRequest, first: int, count: int) -> dict[str, Any]:
    """The JSON of one request for samples first ... first + count - 1. Nothing but the temperature shapes the distribution."""
    return {
        "model": MODEL_NAME,
        "token_ids": list(prompt.token_ids),
        "sampling_params": {
            "n": count,
            "seed": first_seed(request.seed, prompt.index) + first,
            "temperature": request.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "max_tokens": request.max_new_tokens,
            "logprobs": 0,
            "detokenize": False,
        },
    }


def parse_choice(choice: Mapping[str, Any], where: str) -> Sampled:
    """One choice of an answer. Raises RolloutError starting with `where` when tokens, log-probs or versions are not whole."""
    token_ids = tuple(choice["token_ids"] or ())
    content = (choice["logprobs"] or {}).get("content") or []
    if not token_ids or [entry["token_id"] for entry in content] != list(token_ids):
        raise RolloutError(f"{where}: {len(token_ids)} tokens came with log-probs of {len(content)} tokens")
    log_probs = tuple(float(entry["logprob"]) for entry in content)
    for place, log_prob in enumerate(log_probs):
        if not math.isfinite(log_prob) or log_prob <= _LOWEST_LOG_PROB:
            raise RolloutError(f"{where}: token {place} ({token_ids[place]}) has log-prob {log_prob}")
    if choice["finish_reason"] not in ("stop", "length"):
        raise RolloutError(f"{where}: generation ended by {choice['finish_reason']!r}")
    spans = choice["weight_versions"]
    return Sampled(token_ids, log_probs, choice["finish_reason"], int(spans[0]["version"]), int(spans[-1]["version"]))
