"""Sampled ids as text, and which of them are tokens at all.

A model's vocabulary is often longer than its tokenizer's (every Qwen's is padded to a round number), so a policy can sample ids
that are no token. A tokenizer decodes them to nothing, which makes "4", id, "2" read 42.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from megatron_entropic.rollout.prompt_encoder import Tokenizer
from megatron_entropic.rollout.types import IntArray, Rollout

NO_TOKEN = "\ufffd"
"""Text of an id that is no token (the replacement character, which also stands for bytes that are no UTF-8)."""


class Vocabulary:
    """The tokens of `tokenizer`. Shape suffix: V ids up to the largest, and one more, for all that are beyond."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ids = list(tokenizer.get_vocab().values())
        self._is_token_V = np.zeros(max(ids) + 2, dtype=bool)
        self._is_token_V[ids] = True

    def response_text(self, response_ids: Sequence[int] | IntArray, finish_reason: str) -> str:
        """The text of a response without the end-of-sequence token that stopped it; NO_TOKEN for each id that is no token.

        Special tokens stay in it, so that a verifier sees (and refuses) what the model really said.
        """
        ids = _without_end(response_ids, finish_reason)
        is_token = self._is_token(ids)
        if is_token.all():
            return self._decode(ids)
        runs = groupby(zip(ids, is_token, strict=True), key=lambda pair: bool(pair[1]))
        return "".join(self._decode([id_ for id_, _ in run]) if tokens else NO_TOKEN * len(list(run)) for tokens, run in runs)

    def count_unknown(self, rollout: Rollout) -> int:
        """Number of ids of the response that are no token, apart from the end-of-sequence token that stopped it."""
        return int((~self._is_token(_without_end(rollout.response_ids, rollout.finish_reason))).sum())

    def _is_token(self, ids: Sequence[int] | IntArray) -> npt.NDArray[np.bool_]:
        return self._is_token_V.take(np.asarray(ids, dtype=np.int64), mode="clip")

    def _decode(self, ids: Sequence[int] | IntArray) -> str:
        return self.tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _without_end(response_ids: Sequence[int] | IntArray, finish_reason: str) -> Sequence[int] | IntArray:
    return response_ids[:-1] if finish_reason == "stop" else response_ids
