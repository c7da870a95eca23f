"""The pretrained model for the tests: made where the recipe looks for it, once; a checkout that has it keeps it."""

from pathlib import Path

from recipes.smollm2 import FOLDER, make

SMOLLM2 = Path(__file__).resolve().parents[2] / FOLDER


def smollm2() -> Path:
    """The model's directory, whole. Fails where neither it nor the package index can be reached: there is no test without it."""
    make(SMOLLM2)
    return SMOLLM2
