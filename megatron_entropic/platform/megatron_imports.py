"""Importing Megatron-Core without what it brings along for nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from megatron_entropic.system.many_imports import many_imports


def import_megatron() -> None:
    """Imports Megatron-Core, if nobody has, in half the time: to be called before the modules that use it are imported.

    Where there is no GPU its small functions are not handed to torch.compile, which would never compile them there
    (cpu.py) but imports its compiler, a second and a quarter, for the mere asking.
    """
    if "megatron.core" in sys.modules:
        return
    with many_imports(), _not_imported("wandb"), _uncompiled():
        import megatron.core  # noqa: F401


@contextmanager
def _not_imported(package: str) -> Iterator[None]:
    """Makes an optional package look as if it were not installed: Megatron-Core imports wandb for an engine that is not used here."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # how Python says that an import is to fail
    try:
        yield
    finally:
        del sys.modules[package]


@contextmanager
def _uncompiled() -> Iterator[None]:
    if torch.cuda.is_available():
        yield
        return
    compiler: Any = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Like torch.compile, as a decorator with and without arguments, but for the compiling."""
    return (lambda named: named) if function is None else function
