"""Entropy controllers: pure objects that turn one measured entropy a step into the coefficients of the next update."""

from megatron_entropic.control.aent import AEnt
from megatron_entropic.control.coefficients import Coefficients
from megatron_entropic.control.controller import Controller
from megatron_entropic.control.entropic import EntroPIC
from megatron_entropic.control.kinds import ControlKind, make_controller
from megatron_entropic.control.measurement import Measurement, NonFiniteEntropyError
from megatron_entropic.control.steering import Steering

__all__ = [
    "AEnt",
    "Coefficients",
    "ControlKind",
    "Controller",
    "EntroPIC",
    "Measurement",
    "NonFiniteEntropyError",
    "Steering",
    "make_controller",
]
