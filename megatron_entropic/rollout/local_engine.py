"""The in-process engine: rollouts from transformers' own forward pass, for debugging, tests and quick experiments.

It needs no server and no second process. Every random number depends on (seed, prompt index, sample, version) alone, so
what is sampled for a prompt does not depend on which prompts are generated beside it.

Shapes: P prompts of a batch, B = P * samples sequences, A sequences not finished yet, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config, RolloutConfig
from megatron_entropic.hf.stop_tokens import stop_token_ids
from megatron_entropic.platform import select_device
from megatron_entropic.rollout.local_weights import copy_weights
from megatron_entropic.rollout.prompt_encoder import load_tokenizer
from megatron_entropic.rollout.types import (
    Finished,
    FloatArray,
    IntArray,
    NamedWeights,
    Prompt,
    Rollout,
    RolloutError,
    SamplingParameters,
)
from megatron_entropic.rollout.vocabulary import Vocabulary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ANY_VERSION = -1
"""Of the weights, in the key of random numbers that do not depend on it: none that a run has."""
MAX_SEQUENCES = 512
"""Sequences of one batch: bounds the memory of the KV cache and of the logits."""


@dataclass(frozen=True, eq=False)
class LocalResponse:
    """A response: token ids, their log-probabilities (nats, at the sampling temperature), "stop" or "length"."""

    ids: IntArray
    log_probs: FloatArray
    finish_reason: str


class LocalEngine:
    """RolloutEngine (types.py) that generates in this process, on `device`, starting from the weights in `model_dir`.

    `device` is the machine's first by default: the engine lives on rank 0. Makes no collective. `dtype` is that of weights
    and activations; log-probabilities are computed in float32. Before the first sync_weights the version is 0. Raises
    RolloutError when `model_dir` is no directory or `dtype` is unknown.
    """

    in_background = False

    def __init__(self, cfg: RolloutConfig, *, model_dir: Path, dtype: str, seed: int, device: torch.device | str | None = None) -> None:
        if not model_dir.is_dir():
            raise RolloutError(f"local engine: model.hf_path={model_dir} is not a directory; give a Hugging Face directory")
        if dtype not in DTYPES:
            raise RolloutError(f"local engine: model.dtype={dtype!r} is none of {', '.join(DTYPES)}")
        self._cfg = cfg
        self._seed = seed
        self._version = 0
        self._vocabulary = Vocabulary(load_tokenizer(model_dir))
        transformers_logging.disable_progress_bar()  # a bar per loaded model has no place among the step lines
        model = _read_model(model_dir, DTYPES[dtype])
        self._model: Any = model.to(select_device(0) if device is None else device).eval()
        self._eos_ids = stop_token_ids(model_dir)
        self._max_length = int(model.config.max_position_embeddings)

    def start(self) -> None:
        """The model was read when the engine was made."""

    def seek(self, step: int) -> None:
        """Any step can be generated at any time."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        finished: Finished | None = None,
        sampling: SamplingParameters | None = None,
    ) -> list[Rollout]:
        """`samples_per_prompt` rollouts of every prompt, ordered by prompt, then sample; by `sampling` instead of the run's settings.

        Raises RolloutError when the engine is closed, a prompt is empty or too long, or the model's logits are not finite.
        """
        model = self._open_model()
        seed, version = (self._seed, self._version) if sampling is None else (sampling.seed, _ANY_VERSION)
        sampling = sampling or SamplingParameters(self._cfg.temperature, 1.0, self._cfg.max_new_tokens, seed)
        for prompt in prompts:
            self._check(prompt, sampling.max_new_tokens)
        uniforms_BT = np.empty((len(prompts) * samples_per_prompt, sampling.max_new_tokens))
        for row, (prompt, sample) in enumerate((p, s) for p in prompts for s in range(samples_per_prompt)):
            uniforms_BT[row] = _uniforms((seed, prompt.index, sample, version), sampling.max_new_tokens)
        sampled = sample_responses(
            model,
            [prompt.token_ids for prompt in prompts],
            uniforms_BT,
            samples_per_prompt=samples_per_prompt,
            temperature=sampling.temperature,
            eos_ids=self._eos_ids,
            top_p=sampling.top_p,
        )
        return [
            self._rollout(prompts[row // samples_per_prompt], row % samples_per_prompt, response)
            for row, response in enumerate(sampled)
        ]

    def sync_weights(self, weights: NamedWeights, version: int) -> None:
        """Copies `weights` into the model, in place; later rollouts carry `version`. Drains `weights` always.

        Tied weights may come under either name, or both. Raises RolloutError listing every unknown, missing, repeated or
        wrong-shaped name; the version then stays, and the engine must get a complete set of weights before it is used.
        """
        remaining: Iterator[tuple[str, Tensor]] = iter(weights)
        try:
            problems = copy_weights(self._open_model(), remaining)
        finally:
            # Producing the stream can take collectives: the other ranks wait for this one until its end.
            for _ in remaining:
                pass
        if problems:
            raise RolloutError(f"local engine: weights of version {version} do not fit the model:\n  " + "\n  ".join(problems))
        self._version = version

    def close(self) -> None:
        """Releases the model; safe to call twice."""
        self._model = None

    def _open_model(self) -> Any:
        if self._model is None:
            raise RolloutError("local engine: it is closed; make a new one")
        return self._model

    def _check(self, prompt: Prompt, max_new_tokens: int) -> None:
        if not prompt.token_ids:
            raise RolloutError(f"local engine: prompt {prompt.index} ({prompt.text!r}) has no tokens")
        longest = len(prompt.token_ids) + max_new_tokens
        if longest > self._max_length:
            raise RolloutError(
                f"local engine: prompt {prompt.index} has {len(prompt.token_ids)} tokens; with max_new_tokens="
                f"{max_new_tokens} that exceeds the model's max_position_embeddings={self._max_length}"
            )

    def _rollout(self, prompt: Prompt, sample: int, response: LocalResponse) -> Rollout:
        return Rollout(
            prompt_index=prompt.index,
            sample_index=sample,
            prompt_ids=np.array(prompt.token_ids, dtype=np.int32),
            response_ids=response.ids,
            log_probs=response.log_probs,
            text=self._vocabulary.response_text(response.ids, response.finish_reason),
            finish_reason=response.finish_reason,
            first_version=self._version,
            last_version=self._version,
            server="local",
        )


def make_local_engine(cfg: Config) -> LocalEngine:
    """The engine of `rollout.engine=local`. Raises RolloutError."""
    return LocalEngine(cfg.rollout, model_dir=model_folder(cfg.model.hf_path).hf_dir, dtype=cfg.model.dtype, seed=cfg.trainer.seed)


def sample_responses(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniforms_BT: npt.NDArray[np.float64],
    *,
    samples_per_prompt: int,
    temperature: float,
    eos_ids: Sequence[int],
    top_p: float = 1.0,
) -> list[LocalResponse]:
    """`samples_per_prompt` responses of each prompt, ordered by prompt, then sample, from the likeliest tokens that hold `top_p`.

    `uniforms_BT[b, t]` in [0, 1) decides token t of sequence b (by the inverse of the distribution function), and its width
    bounds the response. Prompts of similar length share a batch. Raises RolloutError on logits that are not finite.
    """
    by_length = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
    per_batch = max(1, MAX_SEQUENCES // samples_per_prompt)
    responses: dict[int, list[LocalResponse]] = {}
    for start in range(0, len(prompts), per_batch):
        batch = by_length[start : start + per_batch]
        rows = np.concatenate([np.arange(p * samples_per_prompt, (p + 1) * samples_per_prompt) for p in batch])
        uniforms = torch.from_numpy(uniforms_BT[rows]).to(model.device)
        sampled = _sample_batch(model, [prompts[p] for p in batch], uniforms, samples_per_prompt, (temperature, top_p), eos_ids)
        for index, p in enumerate(batch):
            responses[p] = sampled[index * samples_per_prompt : (index + 1) * samples_per_prompt]
    return [response for p in range(len(prompts)) for response in responses[p]]


@torch.inference_mode()
def _sample_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniforms_BT: Tensor,
    samples: int,
    shape: tuple[float, float],
    eos_ids: Sequence[int],
) -> list[LocalResponse]:
    """One left-padded batch with a KV cache; a sequence leaves it as soon as it has ended. `shape`: temperature and top_p."""
    ids_PT, mask_PT = _left_padded(prompts, model.device)
    positions_PT = (mask_PT.cumsum(1) - 1).clamp(min=0)
    output = model(
        ids_PT, attention_mask=_mask_or_none(mask_PT), position_ids=positions_PT, use_cache=True, logits_to_keep=1
    )  # each prompt once, whatever the number of its samples
    cache = output.past_key_values
    cache.batch_repeat_interleave(samples)
    logits_AV = output.logits[:, -1].repeat_interleave(samples, 0)
    mask_AT = mask_PT.repeat_interleave(samples, 0)
    position_A = positions_PT[:, -1].repeat_interleave(samples, 0)

    longest = uniforms_BT.shape[1]
    eos = torch.tensor(list(eos_ids), device=model.device)
    alive_A = torch.arange(len(uniforms_BT), device=model.device)
    ids_BT = torch.full(uniforms_BT.shape, -1, device=model.device)
    log_probs_BT = torch.zeros(uniforms_BT.shape, dtype=torch.float32, device=model.device)
    for step in range(longest):
        ids_A, log_probs_A = _draw(logits_AV, uniforms_BT[alive_A, step], *shape)
        ids_BT[alive_A, step], log_probs_BT[alive_A, step] = ids_A, log_probs_A
        going = torch.isin(ids_A, eos, invert=True).nonzero()[:, 0]
        if step == longest - 1 or not len(going):
            break
        if len(going) < len(alive_A):
            cache.batch_select_indices(going)
            alive_A, ids_A, mask_AT, position_A = alive_A[going], ids_A[going], mask_AT[going], position_A[going]
        position_A = position_A + 1
        mask_AT = torch.cat([mask_AT, mask_AT.new_ones(len(going), 1)], 1)
        output = model(
            ids_A[:, None],
            attention_mask=_mask_or_none(mask_AT),
            position_ids=position_A[:, None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_AV = output.logits[:, -1]
    return _collect(ids_BT, log_probs_BT, set(eos_ids))


def _draw(logits_AV: Tensor, uniform_A: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """(token ids, float32 log-probabilities), [A] each: token i when the distribution function first exceeds the uniform at i.

    Temperature 0 is greedy: the likeliest token, with its log-probability at temperature 1.
    """
    log_pi_AV = (logits_AV.float() / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0:
        log_probs_A, ids_A = log_pi_AV.max(-1)
        _check_finite(log_probs_A)
        return ids_A, log_probs_A
    if top_p < 1.0:
        log_pi_AV = _nucleus(log_pi_AV, top_p)
    cumulative_AV = log_pi_AV.double().exp().cumsum(-1)
    threshold_A1 = (uniform_A * cumulative_AV[:, -1])[:, None]
    ids_A1 = torch.searchsorted(cumulative_AV, threshold_A1, right=True).clamp(max=logits_AV.shape[-1] - 1)
    log_probs_A = log_pi_AV.gather(1, ids_A1)[:, 0]
    _check_finite(log_probs_A)
    return ids_A1[:, 0], log_probs_A


def _nucleus(log_pi_AV: Tensor, top_p: float) -> Tensor:
    """Log-probabilities among the fewest likeliest tokens that hold at least `top_p`; -inf outside. Equals: the lowest ids first."""
    ordered_AV, ids_AV = log_pi_AV.sort(dim=-1, descending=True, stable=True)
    probability_AV = ordered_AV.double().exp()
    outside_AV = (probability_AV.cumsum(-1) - probability_AV) >= top_p
    outside_AV[:, 0] = False  # whatever rounding says
    return log_pi_AV.masked_fill(torch.zeros_like(outside_AV).scatter(-1, ids_AV, outside_AV), -torch.inf).log_softmax(-1)


def _check_finite(log_probs_A: Tensor) -> None:
    if not log_probs_A.isfinite().all():
        raise RolloutError("local engine: the model's logits are not finite; look at the weights of the last update")


def _collect(ids_BT: Tensor, log_probs_BT: Tensor, eos_ids: set[int]) -> list[LocalResponse]:
    lengths_B = (ids_BT >= 0).sum(1).tolist()  # -1 follows the last token
    all_ids_BT, all_log_probs_BT = ids_BT.int().cpu().numpy(), log_probs_BT.cpu().numpy()
    responses = []
    for ids_T, log_probs_T, length in zip(all_ids_BT, all_log_probs_BT, lengths_B, strict=True):
        reason = "stop" if int(ids_T[length - 1]) in eos_ids else "length"
        responses.append(LocalResponse(ids_T[:length].copy(), log_probs_T[:length].copy(), reason))
    return responses


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids_PT, mask_PT), int64, mask 0 on padding. The padding's id is 0: any valid id does, it is never attended to."""
    longest = max(map(len, prompts))
    ids_PT = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask_PT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids_PT, mask_PT


def _mask_or_none(mask: Tensor) -> Tensor | None:
    """None when nothing is masked: attention then takes its faster causal path."""
    return None if bool(mask.all()) else mask


def _uniforms(key: tuple[int, int, int, int], count: int) -> npt.NDArray[np.float64]:
    """`count` uniforms in [0, 1) that depend on (seed, prompt index, sample, version) alone, on every machine."""
    digest = sha256(" ".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16]))).random(count)


def _read_model(model_dir: Path, dtype: torch.dtype) -> Any:
    if any(model_dir.glob("*.safetensors")):
        return AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, local_files_only=True, use_safetensors=True)
    # Of a distributed checkpoint: the trainer sends the weights before the first prompt.
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir, local_files_only=True), dtype=dtype)
