"""Sampling from several vLLM servers at once: token ids in, token ids and log-probs out (/inference/v1/generate)."""

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np

from megatron_entropic.rollout.types import FloatArray, IntArray, Prompt, RolloutError
from megatron_entropic.rollout.vllm.client import ServerClient
from megatron_entropic.rollout.vllm.command_line import MODEL_NAME

_QUEUED_FRACTION = 0.25
"""Samples waiting in a server, of its --max-num-seqs: enough to keep it busy, few enough that a request's time is its own."""

MAX_SAMPLES_PER_REQUEST = 64
"""More samples of one prompt go into several requests; a request may not exceed the server's --max-num-seqs."""

_SEQUENCES_PER_REQUEST = 4
"""Of --max-num-seqs, for each request in flight at most: every one of them is a connection and a file."""

_LOWEST_LOG_PROB = -9999.0  # what vLLM writes for -inf and NaN


@dataclass(frozen=True)
class SamplingRequest:
    """Sampling parameters of every prompt. `timeout_s` bounds one request, from sending it to its whole answer."""

    seed: int
    samples: int
    temperature: float
    max_new_tokens: int
    timeout_s: float
    stop_token_ids: tuple[int, ...]
    """Those that end a response; the server's own rule is not asked."""
    sequences: int = 256
    """Those that a server generates at one time."""
    top_p: float = 1.0

    @property
    def samples_at_once(self) -> int:
        """Samples of one request, at most."""
        return min(MAX_SAMPLES_PER_REQUEST, self.sequences)

    @property
    def requests_at_once(self) -> int:
        """Requests in flight to one server: enough for its batch and a short queue."""
        each = min(self.samples, self.samples_at_once)
        wanted = math.ceil((1 + _QUEUED_FRACTION) * self.sequences / each)
        return max(1, min(self.sequences // _SEQUENCES_PER_REQUEST, wanted))


@dataclass(frozen=True, eq=False)
class Sampled:
    """One response as a server reports it; see Rollout for the fields."""

    token_ids: IntArray
    log_probs: FloatArray
    finish_reason: str
    first_version: int
    last_version: int


def assign(prompts: Sequence[Prompt], servers: int) -> list[int]:
    """The server of each prompt: numbers differ by at most one, and long prompts are spread evenly. Deterministic."""
    longest_first = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index].token_ids), index))
    server_of = [0] * len(prompts)
    for turn, index in enumerate(longest_first):
        server_of[index] = turn % servers
    return server_of


def first_seed(seed: int, prompt_index: int) -> int:
    """Seed of sample 0 of a prompt; sample j has this plus j (vLLM does the same within a request). Fits a signed int64."""
    digest = hashlib.blake2b(f"{seed}/{prompt_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


T = TypeVar("T")
Accept = Callable[[Prompt, ServerClient, Sequence[Sampled]], T]
"""Consumer of a prompt's samples, in order, and of the server that gave them; called in a thread beside the requests."""


def sample(servers: Sequence[ServerClient], prompts: Sequence[Prompt], request: SamplingRequest, accept: Accept[T]) -> list[T]:
    """Samples every prompt and returns `accept` of each prompt's samples, in the order of the prompts.

    Raises RolloutError naming the server and the prompt of the first request that fails or exceeds its time; the others are dropped.
    """
    try:
        return asyncio.run(_sample(servers, prompts, request, accept))
    except _UnansweredError as unanswered:
        raise unanswered.explained() from unanswered.__cause__


class _UnansweredError(Exception):
    """A request got no answer. Explained once the loop has ended: finding out whether its server died takes a moment."""

    def __init__(self, server: ServerClient, prompt: Prompt, timeout_s: float, error: Exception) -> None:
        super().__init__(str(error))
        self.server = server
        self.what = f"a request for prompt {prompt.index}"
        self.timeout_s = timeout_s
        self.error = error

    def explained(self) -> RolloutError:
        if isinstance(self.error, TimeoutError):
            return self.server.too_slow(self.what, self.timeout_s, "rollout.request_timeout_s")
        return self.server.failed(self.what, self.error)


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
        self.slots = asyncio.Semaphore(request.requests_at_once)
        self.client = httpx.AsyncClient(
            base_url=server.url,
            headers=server.headers,
            timeout=None,  # of httpx's timeouts none bounds a whole request
            limits=httpx.Limits(max_connections=request.requests_at_once),
            trust_env=False,
        )

    async def __aenter__(self) -> "_Route":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def sample(self, prompt: Prompt, accept: Accept[T]) -> T:
        samples: list[Sampled] = []
        for first in range(0, self.request.samples, self.request.samples_at_once):
            count = min(self.request.samples_at_once, self.request.samples - first)
            samples += await self._request(prompt, first, count)
        return await asyncio.to_thread(accept, prompt, self.server, samples)

    async def _request(self, prompt: Prompt, first: int, count: int) -> list[Sampled]:
        body = request_body(prompt, self.request, first, count)
        async with self.slots:
            try:
                async with asyncio.timeout(self.request.timeout_s):
                    response = await self.client.post("/inference/v1/generate", json=body)
            except (httpx.HTTPError, TimeoutError) as error:
                raise _UnansweredError(self.server, prompt, self.request.timeout_s, error) from error
        if response.status_code != 200:
            reason = f"{response.status_code}: {response.text[:500]}{self.server.last_words()}"
            raise RolloutError(f"{self.server} refused prompt {prompt.index} with {reason}")
        return await asyncio.to_thread(parse_answer, response.content, count, f"{self.server}, prompt {prompt.index}")


def request_body(prompt: Prompt, request: SamplingRequest, first: int, count: int) -> dict[str, Any]:
    """The JSON of one request for samples first ... first + count - 1. Nothing but temperature and top_p shapes the distribution."""
    return {
        "model": MODEL_NAME,
        "token_ids": list(prompt.token_ids),
        "sampling_params": {
            "n": count,
            "seed": first_seed(request.seed, prompt.index) + first,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "max_tokens": request.max_new_tokens,
            "ignore_eos": True,  # the server's own rule, of other files than the other engines'
            "stop_token_ids": list(request.stop_token_ids),
            "logprobs": 0,
            "detokenize": False,
        },
    }


class _TokenLogProb(msgspec.Struct, gc=False):
    token_id: int
    logprob: float


class _LogProbs(msgspec.Struct):
    content: list[_TokenLogProb] | None = None


class _Span(msgspec.Struct):
    version: str


class CompletionChoice(msgspec.Struct):
    """One sample of a server's answer."""

    index: int
    token_ids: list[int] | None
    logprobs: _LogProbs | None
    finish_reason: str | None
    weight_versions: list[_Span]


class _Answer(msgspec.Struct):
    choices: list[CompletionChoice]


_DECODER = msgspec.json.Decoder(_Answer)


def parse_answer(content: bytes, count: int, where: str) -> list[Sampled]:
    """The `count` samples of an answer, in order. Raises RolloutError starting with `where` for an answer that is not whole."""
    try:
        choices = sorted(_DECODER.decode(content).choices, key=lambda choice: choice.index)
    except msgspec.DecodeError as error:
        raise RolloutError(f"{where}: not a server's answer ({error}): {content[:200].decode(errors='replace')}") from error
    if len(choices) != count:
        raise RolloutError(f"{where}: {len(choices)} samples came; {count} were asked for")
    return [parse_choice(choice, where) for choice in choices]


def parse_choice(choice: CompletionChoice, where: str) -> Sampled:
    """One sample of an answer. Raises RolloutError starting with `where` when tokens, log-probs or versions are not whole."""
    token_ids = choice.token_ids or []
    content = (choice.logprobs.content if choice.logprobs else None) or []
    if not token_ids or [entry.token_id for entry in content] != token_ids:
        raise RolloutError(f"{where}: {len(token_ids)} tokens came with log-probs of {len(content)} tokens")
    log_probs = np.array([entry.logprob for entry in content], dtype=np.float32)
    if bad := (~np.isfinite(log_probs) | (log_probs <= _LOWEST_LOG_PROB)).nonzero()[0].tolist():
        raise RolloutError(f"{where}: token {bad[0]} ({token_ids[bad[0]]}) has log-prob {log_probs[bad[0]]}")
    if choice.finish_reason not in ("stop", "length"):
        raise RolloutError(f"{where}: generation ended by {choice.finish_reason!r}")
    spans = choice.weight_versions
    versions = int(spans[0].version), int(spans[-1].version)
    return Sampled(np.array(token_ids, dtype=np.int32), log_probs, choice.finish_reason, *versions)
