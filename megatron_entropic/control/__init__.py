"""Entropy controllers: pure objects that turn one measured entropy a step into the coefficients of the next update."""

from megatron_entropic.control.aent import AEnt
from megatron_entropic.control.controller import Coefficients, EntropyController, make_controller
from megatron_entropic.control.entropic import EntroPIC
from megatron_entropic.control.measurement_guard import NonFiniteEntropyError

__all__ = ["AEnt", "Coefficients", "EntroPIC", "EntropyController", "NonFiniteEntropyError", "make_controller"]
