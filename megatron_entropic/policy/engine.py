"""The policy: a Megatron-Core model with its optimizer, updated by Megatron's own schedules.

Shapes: T packed positions of a micro-batch, H hidden size, N response tokens of a batch.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_entropic import platform
from megatron_entropic.algorithms.actuators import find_actuator
from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.control import Coefficients, Measurement
from megatron_entropic.control.kinds import kind_of
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.rank_zero import meet
from megatron_entropic.distributed.reductions import broadcast_from_last_stage, reduce_control, reduce_sums
from megatron_entropic.entropy import TokenStatistics, linear_token_statistics
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.tables import hf_shapes
from megatron_entropic.policy.batching import Batch, MicroBatch, build_micro_batch, plan_micro_batches
from megatron_entropic.policy.covariance_selection import choose_tokens
from megatron_entropic.policy.gradients import shared_gradients
from megatron_entropic.policy.initial_weights import clear_weights, load_start_weights
from megatron_entropic.policy.model import build_model
from megatron_entropic.policy.objective import CONTROL_SUMS, MAXIMA, SUMS, Objective
from megatron_entropic.policy.optimizer import make_optimizer, make_scheduler
from megatron_entropic.policy.response import Response, SteeredEntropy, measured_temperature, reduce_response, response_samples
from megatron_entropic.policy.token_values import TokenRecorder
from megatron_entropic.policy.transformer_engine import position_multiple
from megatron_entropic.policy.update_stats import Totals, UpdateStats, measurement, update_stats
from megatron_entropic.policy.weights import hf_weights

logger = logging.getLogger(__name__)

LossFunction = Callable[[MicroBatch, Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""Of a micro-batch and its hidden states [T, 1, H] on the last stage: (sum of the loss, number of tokens, report)."""


class Policy:
    """The trained policy on this rank. All methods are collective over the world: call them on every rank together."""

    def __init__(self, cfg: Config, parallel: Parallel, *, blank: bool = False) -> None:
        """Reads `cfg.model.hf_path` into the layout of `parallel`. Raises CheckpointError or ValueError naming the file.

        When `blank` all weights are 0 instead, for a checkpoint to be read into: the base model's are not needed, and may be gone.
        """
        if cfg.trainer.deterministic:
            platform.make_deterministic()  # for those who call this without a worker
        self.cfg = cfg
        self.parallel = parallel
        self.arch = Architecture.from_hf(model_folder(cfg.model.hf_path).hf_dir)
        self.model = build_model(self.arch, cfg, parallel)
        if blank:
            clear_weights(self.model)
        else:
            load_start_weights(self.model, model_folder(cfg.model.hf_path).weights, parallel)
        meet(parallel, "every rank to read its weights")
        self.model_config = self.model.config
        self.ddp = shared_gradients(self.model, cfg.parallel)
        self.optimizer = make_optimizer(cfg.optimizer, self.ddp, dtype=cfg.model.dtype)
        self.scheduler = make_scheduler(cfg.optimizer, self.optimizer, updates=cfg.trainer.steps * cfg.batch.mini_batches)
        self.updates = 0
        self._measures_clamped = kind_of(cfg.control).clamped_entropy(cfg.control)
        self._needs_mean_lowering = find_actuator(cfg.control.actuator).needs_mean_lowering
        self.response = Response()
        """Of the latest update, for the next measurement."""
        layout = cfg.parallel
        logger.info(
            "policy: %s from %s, %.3g million parameters, tensor %d x pipeline %d x data %d, expert %d, %s",
            self.arch.architecture,
            cfg.model.hf_path,
            sum(math.prod(shape) for shape in hf_shapes(self.arch).values()) / 1e6,
            layout.tensor,
            layout.pipeline,
            layout.data,
            layout.expert,
            cfg.model.dtype,
        )

    # -- updating -------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, coefficients: Coefficients, requested_target: float | None = None) -> UpdateStats:
        """One optimizer step on a mini-batch.

        The gradient is that of the token mean over the whole mini-batch, whatever the layout. A loss or gradient that is
        not finite leaves the weights alone (`applied=False`). `requested_target`: of rank 0, reaches the controllers of all
        ranks with the measurement.
        """
        if kind_of(self.cfg.control).selection:
            batch = self._with_chosen_tokens(batch)
        self.ddp.train()
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        objective = Objective(self.cfg, coefficients, self._adjustment_scale(batch, coefficients))
        again = response_samples(self.cfg.control, len(batch.samples))
        before = SteeredEntropy(self.cfg.control, batch, again, self.parallel.device) if again else None
        recorder = (
            TokenRecorder(batch, self.parallel.device, clamped=self._measures_clamped) if self.cfg.rollout.record_tokens else None
        )
        totals, requested_target = self._run(
            batch, objective, forward_only=False, before=before, recorder=recorder, requested_target=requested_target
        )
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        applied = math.isfinite(totals["total_loss"]) and math.isfinite(grad_norm) and totals["tokens"] > 0
        learning_rate = float(self.scheduler.get_lr({}))
        version = self.updates
        if applied:
            with platform.mark("optimizer step"):
                self.optimizer.step()
            self.scheduler.step(increment=1)
            self.updates += 1
        self.response = self._measure_response(batch, again, before) if applied and before else Response()
        return update_stats(
            totals,
            self._measure(totals, version, requested_target),
            self.response,
            grad_norm=grad_norm,
            applied=applied,
            learning_rate=learning_rate,
            coefficients=coefficients,
            tokens=recorder.collect(self.parallel) if recorder else None,
        )

    def prepare(self, batch: Batch, requested_target: float | None = None) -> Measurement:
        """Fills `batch.old_log_probs_N` under the present weights, and measures the batch.

        Needed before several updates on one batch, and for stale rollouts. One forward pass without gradients.
        `requested_target`: as in `update`.
        """
        batch.old_log_probs_N, totals, requested_target = self._log_probs(batch, requested_target)
        batch.old_version = self.updates
        return self._measure(totals, self.updates, requested_target)

    def _log_probs(self, batch: Batch, requested_target: float | None = None) -> tuple[Tensor, dict[str, float], float | None]:
        """Log-probs of all response tokens under the present weights, [N] float32, and what `_run` returns. One forward pass."""
        log_probs_N = torch.zeros(batch.response_tokens, dtype=torch.float32, device=self.parallel.device)
        objective = Objective(self.cfg, Coefficients())
        totals, request = self._run(batch, objective, forward_only=True, log_probs_N=log_probs_N, requested_target=requested_target)
        return broadcast_from_last_stage(log_probs_N, self.parallel), totals, request

    def _with_chosen_tokens(self, batch: Batch) -> Batch:
        """`batch` with `selected_N`. Covariances are of the whole mini-batch, so they take a forward pass of their own.

        In the first update after `prepare` its log-probs are the present ones: no pass is made, and ratios to the policy before
        the step are exactly 1, as without `prepare` (KL-Cov's |log r| would turn their rounding into gradients of size 1).
        """
        if batch.old_log_probs_N is not None and batch.old_version == self.updates:
            current_N, batch = batch.old_log_probs_N, replace(batch, old_log_probs_N=None, old_version=None)
        else:
            current_N, _, _ = self._log_probs(batch)
        return replace(batch, selected_N=choose_tokens(self.cfg, batch, current_N, self.updates))

    def _measure(self, totals: Totals, version: int, requested_target: float | None) -> Measurement:
        return measurement(
            totals,
            self.response,
            version=version,
            executed=self.updates,
            learning_rate=float(self.scheduler.get_lr({})) / self.cfg.optimizer.lr,
            clamped=self._measures_clamped,
            requested_target=requested_target,
        )

    def _measure_response(self, batch: Batch, samples: Sequence[int], before: SteeredEntropy) -> Response:
        """Response of the entropy of `batch`'s `samples` to the update just made: one forward pass, one all-reduce of 32 bytes."""
        torch.cuda.synchronize()  # the optimizer's work is not this pass's
        start = time.perf_counter()
        control = self.cfg.control
        temperature = measured_temperature(control, self.cfg.rollout)
        chosen = Batch([batch.samples[index] for index in samples])
        after = SteeredEntropy(control, chosen, range(len(samples)), self.parallel.device)

        def measure(micro_batch: MicroBatch, hidden_T1H: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            after.add(micro_batch, self._statistics(hidden_T1H, micro_batch, temperature, control.steer_by == "clamped_entropy"))
            return hidden_T1H.new_zeros(()), micro_batch.mask_T.sum().to(torch.int), {}

        self._passes(chosen, measure, forward_only=True)
        return replace(reduce_response(before, after, self.parallel), seconds=time.perf_counter() - start)

    def _adjustment_scale(self, batch: Batch, coefficients: Coefficients) -> float:
        """N/D of L_adjust. D is a global count under the current policy, so counting it takes a pass of its own."""
        if self.cfg.control.denominator == "response_tokens" or not coefficients.alpha:
            return 1.0
        totals, _ = self._run(batch, Objective(self.cfg, Coefficients()), forward_only=True)
        return totals["tokens"] / max(totals["actuated"], 1.0)

    def _run(
        self,
        batch: Batch,
        objective: Objective,
        *,
        forward_only: bool,
        log_probs_N: Tensor | None = None,
        before: SteeredEntropy | None = None,
        recorder: TokenRecorder | None = None,
        requested_target: float | None = None,
    ) -> tuple[dict[str, float], float | None]:
        """All micro-batches of `batch` through Megatron's schedule.

        Returns the globally reduced CONTROL_SUMS, SUMS and MAXIMA, and rank 0's `requested_target`. Fills `log_probs_N`, adds to
        `before` and `recorder`.
        """
        reported = self._passes(batch, partial(self._loss, objective, log_probs_N, before, recorder), forward_only=forward_only)
        zero = torch.zeros((), dtype=torch.float64)
        sums = {name: sum((r[name] for r in reported), zero) for name in (*CONTROL_SUMS, *SUMS)}
        maxima = {name: max((r[name] for r in reported), default=zero) for name in MAXIMA}
        control, requested_target = reduce_control({name: sums[name] for name in CONTROL_SUMS}, requested_target, self.parallel)
        others = reduce_sums({name: sums[name] for name in SUMS}, maxima, self.parallel)
        return control | others, requested_target

    def _passes(self, batch: Batch, loss: LossFunction, *, forward_only: bool) -> list[dict[str, Tensor]]:
        """All micro-batches of `batch` through Megatron's schedule; what `loss` reports of each on the last stage."""
        count, micro_batches = self._micro_batches(batch)

        def forward_step(iterator: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
            micro_batch = next(iterator)
            with platform.mark("micro-batch: forward"):
                hidden = model(
                    micro_batch.tokens_1T,
                    micro_batch.positions_1T,
                    None,
                    packed_seq_params=_packed(micro_batch),
                )
            return hidden, partial(marked_loss, micro_batch)

        def marked_loss(micro_batch: MicroBatch, hidden_T1H: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            with platform.mark("micro-batch: output layer and loss"):
                return loss(micro_batch, hidden_T1H)

        name = "passes without gradients" if forward_only else "passes with gradients"
        with torch.set_grad_enabled(not forward_only), platform.mark(name):
            reported: list[dict[str, Tensor]] = get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=micro_batches,
                model=[self.ddp],
                num_microbatches=count,
                seq_length=self.cfg.batch.max_tokens_per_micro_batch,
                micro_batch_size=1,
                forward_only=forward_only,
            )
        return reported

    def _loss(
        self,
        objective: Objective,
        log_probs_N: Tensor | None,
        before: SteeredEntropy | None,
        recorder: TokenRecorder | None,
        micro_batch: MicroBatch,
        hidden_T1H: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Megatron's loss function of the last stage: (sum of the loss, number of tokens, report)."""
        rollout = self.cfg.rollout
        needs_clamped = bool(self._measures_clamped or objective.coefficients.bonus)
        stats = self._statistics(hidden_T1H, micro_batch, rollout.temperature, needs_clamped)
        measured = None
        if (temperature := measured_temperature(self.cfg.control, rollout)) != rollout.temperature:
            with torch.no_grad():
                measured = self._statistics(hidden_T1H.detach(), micro_batch, temperature, self._measures_clamped)
        loss, report = objective.micro_batch_loss(stats, micro_batch, measured)
        if log_probs_N is not None:
            log_probs_N[micro_batch.response_index_T[micro_batch.mask_T]] = stats.log_prob.detach()[micro_batch.mask_T]
        if before is not None:
            before.add(micro_batch, measured or stats)
        if recorder is not None:
            recorder.add(objective, stats, micro_batch, measured or stats)
        tokens = micro_batch.mask_T.sum().to(torch.int)
        return loss, tokens, report

    def _statistics(self, hidden_T1H: Tensor, micro_batch: MicroBatch, temperature: float, needs_clamped: bool) -> TokenStatistics:
        stats = linear_token_statistics(
            hidden_T1H,
            self.model.lm_head_weight(),
            micro_batch.targets_T[:, None],
            tp_group=self.parallel.tp_group if self.parallel.tp_size > 1 else None,
            vocab_size=self.arch.vocab_size,
            temperature=temperature,
            clamp=self.cfg.control.clamp if needs_clamped else None,
            mask=micro_batch.mask_T[:, None],
            mean_lowering=self._needs_mean_lowering,
            sequence_parallel=self.cfg.parallel.sequence,
            validate=False,
            accumulate_main_grad=True,
        )
        clamped, lowering = (None if x is None else x[:, 0] for x in (stats.clamped_entropy, stats.mean_lowering))
        return TokenStatistics(stats.log_prob[:, 0], stats.entropy[:, 0], clamped, lowering)

    def _micro_batches(self, batch: Batch) -> tuple[int, Iterator[MicroBatch]]:
        """Number of this rank's micro-batches, and an iterator that packs each on demand."""
        plan = plan_micro_batches(
            [sample.length for sample in batch.samples],
            data_parallel=self.parallel.dp_size,
            max_tokens=self.cfg.batch.max_tokens_per_micro_batch,
        )
        pad_multiple = position_multiple(self.cfg)
        mine = plan[self.parallel.dp_rank]
        device = self.parallel.device
        return len(mine), (build_micro_batch(batch, indices, device=device, pad_multiple=pad_multiple) for indices in mine)

    # -- weights --------------------------------------------------------------------------------------------------

    def weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """The Hugging Face-named stream of whole tensors on rank 0; every rank must iterate it to the end."""
        return hf_weights(self.model, self.parallel, dtype)


def _packed(micro_batch: MicroBatch) -> PackedSeqParams:
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=micro_batch.cu_seqlens,
        cu_seqlens_kv=micro_batch.cu_seqlens,
        max_seqlen_q=micro_batch.max_seqlen,
        max_seqlen_kv=micro_batch.max_seqlen,
    )
