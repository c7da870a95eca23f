"""A reward model behind HTTP, as `vllm serve MODEL --runner pooling` serves it: /classify or /pooling, several texts a request."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_entropic.tasks.verifiers.batching import Batcher
from megatron_entropic.tasks.verifiers.options import Options
from megatron_entropic.tasks.verifiers.remote import OPTIONS, JudgingServer, RemoteError
from megatron_entropic.tasks.verifiers.template import Template
from megatron_entropic.tasks.verifiers.verdict_cache import VerdictCache, folder_for, key_of

TEMPLATE = "{prompt}\n{response}"
APIS = ("classify", "pooling")
SQUASHES = ("none", "sigmoid", "clip")


class RewardModel:
    """Scores by the model's number: the probability of class `label`, or the last value of what is pooled, squashed into [0, 1]."""

    waits = True

    def __init__(self, options: Options) -> None:
        self.api = options.text("api", "classify", one_of=APIS)
        self.server = JudgingServer(options, self.api)
        self.model = options.text("model")
        self.template = Template(options, TEMPLATE)
        self.label = options.integer("label", -1, at_least=-1, at_most=10_000)
        self.squash = options.text("squash", "none", one_of=SQUASHES)
        self.reads = self.template.reads
        self._cache = VerdictCache(folder_for(options.text("cache", "")), "reward_model")
        self._batcher = Batcher(self._ask, options.integer("batch", 16, at_least=1, at_most=4096))

    def known_answer(self, text: str, row: Mapping[str, Any]) -> str:
        """The text."""
        return text.strip()

    def score(self, answer: str, row: Mapping[str, Any], response: str) -> float:
        """In [0, 1]. Raises RemoteError naming the server when there is no verdict."""
        text = self.template.filled(answer, row, response)
        key = key_of({"url": self.server.address, "model": self.model, "text": text, "label": self.label})
        raw = self._cache.get(key)
        if raw is None:
            raw = self._batcher(text)
            self._cache.put(key, raw)
        return self._squashed(raw)

    def _ask(self, texts: Sequence[str]) -> list[float]:
        reply = self.server.ask({"model": self.model, "input": list(texts)})
        try:
            rows = sorted(reply["data"], key=lambda row: row.get("index", 0))
            values = [self._value(row["probs" if self.api == "classify" else "data"]) for row in rows]
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise RemoteError(f"{self.server.address} replied with no list of scores under data ({why})") from None
        if len(values) != len(texts):
            raise RemoteError(f"{self.server.address} replied with {len(values)} scores for {len(texts)} texts")
        return values

    def _value(self, found: Any) -> float:
        """The number in a list of classes, or in what is pooled: of a token, or of each token, of which the last counts."""
        while isinstance(found, list) and found and isinstance(found[-1], list):
            found = found[-1]
        value = float(found[self.label] if isinstance(found, list) else found)
        if not math.isfinite(value):
            raise ValueError(f"the score {value}")
        return value

    def _squashed(self, value: float) -> float:
        if self.squash == "sigmoid":
            return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))
        if self.squash == "clip":
            return min(1.0, max(0.0, value))
        if not 0.0 <= value <= 1.0:
            raise RemoteError(f"{self.server.address} gave {value:g}, which is not from 0 to 1; say squash: sigmoid, or clip")
        return value


def make_reward_model(options: Mapping[str, Any]) -> RewardModel:
    """Options: url, model (both needed), api (classify, pooling), label (-1: the last class), squash (none, sigmoid, clip), template,
    prompt_field, thinking, batch (16), key_env, timeout_s (50, of all tries), retries (4), cache.
    """
    return RewardModel(
        Options("reward_model", options, *OPTIONS, "api", "label", "squash", "template", "prompt_field", "thinking", "batch")
    )
