"""Entropy controllers: pure objects that turn one measured entropy a step into the coefficients of the next update."""

from .aent import AEnt
from .controller import Coefficients, EntropyController, make_controller
from .entropic import EntroPIC
from .measurement_guard import NonFiniteEntropyError

__all__ = ["AEnt", "Coefficients", "EntroPIC", "EntropyController", "NonFiniteEntropyError", "make_controller"]
