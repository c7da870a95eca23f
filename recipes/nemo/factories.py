"""Every recipe as a NeMo-Run factory: a `run.Partial` of `train` whose every setting can be read and changed.

    partial = factories()["quickstart"]()
    partial.config.trainer.steps = 100

NeMo-Run's tools see them as the factories of `train`: `python -m recipes.nemo --factory quickstart config.trainer.steps=100`.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import fiddle
import nemo_run as run

from megatron_entropic.config import Config
from megatron_entropic.config.loading import from_dict, load_config, override, recipe_names, to_dict

Factory = Callable[[], Any]
"""Returns a `run.Partial[train]`."""


def train(ctx: run.cli.RunContext, recipe: str, config: Config) -> None:
    """Trains a recipe with these settings by the executor of NeMo-Run's command line; without one, on this machine."""
    from recipes.nemo.experiment import start_in_context

    start_in_context(ctx, config.run.name, words(recipe, config))


def words(recipe: str, config: Config) -> list[str]:
    """Arguments of a training command: the recipe and, as overrides, all that `config` has otherwise."""
    base, wanted = to_dict(load_config(recipe)), to_dict(config)
    return [
        recipe,
        *(
            override(f"{section}.{field}", value)
            for section, fields in wanted.items()
            for field, value in fields.items()
            if value != base[section][field]
        ),
    ]


def words_of(partial: Any) -> list[str]:
    """`words` of a factory's product, which may have been changed. Raises ConfigError naming the bad fields."""
    return words(partial.recipe, from_dict(_plain(partial.config), origin=partial.recipe))


def names() -> list[str]:
    """All recipes, and their variants as RECIPE:VARIANT."""
    found = []
    for name in recipe_names():
        variants = getattr(importlib.import_module(f"recipes.{name}"), "VARIANTS", ())
        found += [name, *(f"{name}:{variant}" for variant in variants)]
    return found


@functools.cache
def factories() -> dict[str, Factory]:
    """The factories by recipe, registered with NeMo-Run under names in which `_` stands for `:`."""
    return {name: run.cli.factory(_factory(name), target=train) for name in names()}


def _factory(name: str) -> Factory:
    def make() -> Any:
        return run.Partial(train, recipe=name, config=_configured(load_config(name)))

    make.__name__ = make.__qualname__ = name.replace(":", "_")
    make.__doc__ = summary(name)
    make.__annotations__["return"] = run.Partial[train]
    return make


def summary(name: str) -> str:
    """A recipe in one line: the first of its module's docstring, or of its variant's function."""
    module = importlib.import_module(f"recipes.{name.partition(':')[0]}")
    variant = name.partition(":")[2]
    described = getattr(module, variant) if variant else module
    return str(described.__doc__ or "").strip().split("\n", 1)[0]


def _configured(value: Any) -> Any:
    """A dataclass as a `run.Config` of it, and those in its fields too."""
    if not dataclasses.is_dataclass(value):
        return value
    return run.Config(type(value), **{field.name: _configured(getattr(value, field.name)) for field in dataclasses.fields(value)})


def _plain(value: Any) -> Any:
    """The settings in a `run.Config`, without building it: a bad one is to be named by its whole name."""
    if not isinstance(value, fiddle.Config):
        return value
    return {name: _plain(getattr(value, name)) for name in fiddle.ordered_arguments(value)}
