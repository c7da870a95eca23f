"""The kinds of control (`control.kind`): one record for each, which the trainer asks instead of its name.

The table is `KINDS` in config/control.py. A kind of your own is a record in a module or file of yours: CONTRIBUTING.md.

Shapes: N response tokens of the mini-batch, T packed positions of a micro-batch.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from megatron_entropic.config import Config, ControlConfig
from megatron_entropic.config.control import KIND_ENTRY_POINTS, KINDS
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.controller import Controller
from megatron_entropic.system.named_functions import named_object
from megatron_entropic.system.outsider import made_outside

if TYPE_CHECKING:  # planning and the launcher do without torch
    import torch
    from torch import Tensor

METHODS = ("coefficients", "step", "report", "state_dict", "load_state_dict")
"""Of a Controller."""


def always(_: ControlConfig) -> bool:
    """For a record: whatever the settings are."""
    return True


def never(_: ControlConfig) -> bool:
    """For a record: under no settings."""
    return False


@dataclass(frozen=True)
class TokenPool:
    """All response tokens of a mini-batch, in the order of its samples; the same bits on every rank.

    log_prob_N: nats, under the policy about to be updated. advantage_N: A_t. clipped_N: bool, tokens that the ratio's clip takes out;
    None unless the selection `needs_every_token`. generator: on the CPU; depends on the run's seed and the number of updates alone.
    """

    log_prob_N: "Tensor"
    advantage_N: "Tensor"
    clipped_N: "Tensor | None"
    generator: "torch.Generator"


@dataclass(frozen=True)
class TokenLoss:
    """Changes of a selection to a micro-batch: [T] each; `policy_T` and `log_ratio_T` = log pi - log pi_old carry gradients."""

    policy_T: "Tensor"
    log_ratio_T: "Tensor"
    selected_T: "Tensor"
    weight_T: "Tensor | None"


@dataclass(frozen=True)
class TokenSelection:
    """A kind that treats some tokens of each update otherwise.

    choose: [N] bool from the settings and the pool. No collectives; the same numbers must give the same choice.
    change: from the settings and a micro-batch, its policy loss [T], and what is added to the loss beside it [T], or None.
    needs_every_token: of the mini-batch on each rank, sampler's log-probs included, rather than only those it trains on.
    clips_ratio: whether the policy loss keeps its clip.
    needs_old_policy: whether nothing is changed in the first update on fresh rollouts, where the ratio is 1.
    """

    choose: "Callable[[ControlConfig, TokenPool], Tensor]"
    change: "Callable[[ControlConfig, TokenLoss], tuple[Tensor, Tensor | None]]"
    needs_every_token: bool = False
    clips_ratio: bool = True
    needs_old_policy: bool = False


@dataclass(frozen=True)
class ControlKind:
    """One value of `control.kind`.

    meaning: one line for `megatron-entropic settings control`.
    make: the controller, from the settings and Adam's beta1 (the lag between a coefficient and its effect).
    reads: names of the settings of `control` it reads beside those that every kind does; others are refused when they are given.
    targeted: whether `control.target_entropy` is what it holds. steered: whether it does so by alpha, so that each update's response
        is measured. ranged: whether `control.entropy_low` and `entropy_high` bound the clamped entropy.
    clamped_entropy: whether, under these settings, the clamped entropy is measured in every update (a handed-over bonus has it
        measured only while it acts). adds_bonus: whether an entropy bonus may be applied.
    measures_first: whether the batch is measured by a log-prob pass before its first update, also where nothing else asks for one.
    selection: for kinds that treat some tokens otherwise.
    """

    meaning: str
    make: Callable[[ControlConfig, float], Controller]
    reads: tuple[str, ...] = ()
    targeted: bool = False
    steered: bool = False
    ranged: bool = False
    clamped_entropy: Callable[[ControlConfig], bool] = never
    adds_bonus: Callable[[ControlConfig], bool] = never
    measures_first: bool = False
    selection: TokenSelection | None = None


def kind_of(control: ControlConfig) -> ControlKind:
    """The record that `control.kind` names. Raises ValueError naming what is missing of one from outside the package."""
    return _named(control.kind)


@cache
def _named(kind: str) -> ControlKind:
    record = named_object("control.kind", kind, KINDS, KIND_ENTRY_POINTS)
    if not isinstance(record, ControlKind):
        raise ValueError(f"control.kind={kind}: {kind.rpartition(':')[2]} is no ControlKind but {type(record).__name__}")
    return record


def make_controller(cfg: Config) -> Controller:
    """The controller that `control.kind` names. Raises ValueError naming a kind from outside the package and what is wrong with it."""
    control, make = cfg.control, kind_of(cfg.control).make
    if control.kind in KINDS:
        return make(control, cfg.optimizer.beta1)
    place = f"control.kind={control.kind}"
    controller: Controller = made_outside(place, make, control, cfg.optimizer.beta1, needs=METHODS)
    if not isinstance(found := controller.coefficients(), Coefficients):
        raise ValueError(f"{place}: coefficients() gave {type(found).__name__}, not Coefficients")
    try:
        json.dumps(controller.state_dict())
    except TypeError as error:
        raise ValueError(f"{place}: state_dict() cannot be saved as JSON: {error}") from error
    return controller


def measures_first(control: ControlConfig, *, mini_batches: int, max_staleness: int) -> bool:
    """Whether a log-prob pass measures each batch before its first update: several updates, and stale rollouts, need it anyway."""
    return mini_batches > 1 or max_staleness > 0 or control.fresh_measurement or kind_of(control).measures_first


def measures_response(control: ControlConfig) -> bool:
    """Whether each update's effect on the entropy is measured on the same tokens: only where something is steered by it."""
    return kind_of(control).steered and control.response_share > 0
