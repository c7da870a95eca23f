"""Rotary position embeddings as a config.json describes them: the base, and the scaling that Megatron-Core can compute.

transformers 5 writes `rope_parameters`, transformers 4 `rope_theta` beside `rope_scaling`. Where both are there, and describe
different functions, readers differ in which they take: the directory is refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_entropic.hf.config_json import ConfigFields

LLAMA3_CONSTANTS: Mapping[str, float] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants of Megatron-Core's Llama 3 rope scaling; only its factor is a setting."""
_TYPES = ("default", "llama3", "linear", "dynamic", "yarn")
_YARN_FIELDS = {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
_FIELDS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", *LLAMA3_CONSTANTS, *_YARN_FIELDS}
"""Everything else (mrope_section, alpha, ...) makes another function of it, for one reader or another."""


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071), with transformers' names and defaults."""

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    """Factor on the rotated queries and keys."""
    truncate: bool
    """Whether the bounds of the interpolated dimensions are rounded to integers."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embeddings of base `theta`, scaled in one way or none."""

    theta: float
    llama3_factor: float | None = None
    """Of Llama 3's scaling, whose other numbers are LLAMA3_CONSTANTS."""
    linear_factor: float | None = None
    """Positions are divided by it."""
    yarn: Yarn | None = None


def read_rope(fields: ConfigFields, default_theta: float, max_positions: int) -> Rope:
    """Parses the rope `fields`. Raises ValueError naming file and field for contradictions and for what Megatron-Core does not compute.

    Args:
        default_theta: the base where none is given, transformers' for the architecture.
        max_positions: the model's longest sequence.
    """
    _refuse_partial(fields, fields.values, "partial_rotary_factor")
    described = {
        name: _read(fields, name, fields.values[name], default_theta, max_positions)
        for name in ("rope_parameters", "rope_scaling")
        if fields.get(name)
    }
    if len(set(described.values())) > 1:
        raise fields.error(
            "rope_scaling",
            f"= {fields.get('rope_scaling')!r} contradicts rope_parameters = {fields.get('rope_parameters')!r}; keep one of them: "
            "transformers 5 writes rope_parameters, with rope_theta in it",
        )
    if described:
        return described.popitem()[1]
    return Rope(fields.positive_float("rope_theta", fields.values.get("rope_theta", default_theta)))


def _read(fields: ConfigFields, name: str, parameters: Any, default_theta: float, max_positions: int) -> Rope:
    """The embeddings that the object `parameters` under `name` describes, `rope_theta` beside it where it has none itself."""
    if not isinstance(parameters, dict):
        raise fields.error(name, f"= {parameters!r} is not an object")
    _refuse_partial(fields, parameters, f"{name}.partial_rotary_factor")
    if unknown := sorted(key for key, value in parameters.items() if key not in _FIELDS and value is not None):
        raise fields.error(f"{name}.{unknown[0]}", f"= {parameters[unknown[0]]!r} is not supported")
    inner, outer = parameters.get("rope_theta"), fields.get("rope_theta")
    if inner is not None and outer is not None and inner != outer:
        raise fields.error(f"{name}.rope_theta", f"= {inner!r} contradicts rope_theta = {outer!r}; keep one of them")
    if inner is not None:
        theta = fields.positive_float(f"{name}.rope_theta", inner)
    else:
        theta = fields.positive_float("rope_theta", default_theta if outer is None else outer)
    match _type(fields, name, parameters):
        case "llama3":
            return Rope(theta, llama3_factor=_llama3_factor(fields, name, parameters))
        case "linear":
            return Rope(theta, linear_factor=_linear_factor(fields, name, parameters))
        case "yarn":
            return Rope(theta, yarn=_yarn(fields, name, parameters, max_positions))
        case "dynamic":  # begins beyond max_position_embeddings, which no sequence of a run reaches
            _factor(fields, name, parameters)
    return Rope(theta)


def _type(fields: ConfigFields, name: str, parameters: Mapping[str, Any]) -> str:
    kind, older = parameters.get("rope_type"), parameters.get("type")
    if kind is not None and older is not None and kind != older:
        raise fields.error(f"{name}.type", f"= {older!r} contradicts rope_type = {kind!r}; keep one of them")
    kind = kind or older or "default"
    if kind not in _TYPES:
        raise fields.error(f"{name}.rope_type", f"= {kind!r} is not supported; supported are {', '.join(map(repr, _TYPES))}")
    return str(kind)


def _refuse_partial(fields: ConfigFields, holder: Mapping[str, Any], name: str) -> None:
    fraction = holder.get("partial_rotary_factor")
    if fraction is not None and fraction != 1.0:
        raise fields.error(name, f"= {fraction!r} is not supported; it must be 1.0")


def _factor(fields: ConfigFields, name: str, parameters: Mapping[str, Any]) -> float:
    factor = fields.positive_float(f"{name}.factor", parameters.get("factor"))
    if factor < 1:
        raise fields.error(f"{name}.factor", f"= {factor} is not at least 1")
    return factor


def _linear_factor(fields: ConfigFields, name: str, parameters: Mapping[str, Any]) -> float:
    if type(parameters.get("factor")) is int:
        whole = parameters["factor"]
        raise fields.error(f"{name}.factor", f"= {whole} is an integer, which vLLM does not take here; write {float(whole)}")
    return _factor(fields, name, parameters)


def _llama3_factor(fields: ConfigFields, name: str, parameters: Mapping[str, Any]) -> float:
    for constant, supported in LLAMA3_CONSTANTS.items():
        if parameters.get(constant) != supported:
            raise fields.error(f"{name}.{constant}", f"= {parameters.get(constant)!r} is not supported; it must be {supported!r}")
    return fields.positive_float(f"{name}.factor", parameters.get("factor"))


def _yarn(fields: ConfigFields, name: str, parameters: Mapping[str, Any], max_positions: int) -> Yarn:
    factor = _factor(fields, name, parameters)
    inner, outer = parameters.get("original_max_position_embeddings"), fields.get("original_max_position_embeddings")
    field = f"{name}.original_max_position_embeddings"
    if inner is not None and outer is not None and inner != outer:
        raise fields.error(field, f"= {inner!r} contradicts original_max_position_embeddings = {outer!r}; keep one of them")
    original = next((value for value in (outer, inner) if value is not None), max_positions)
    if type(original) is not int or original < 1:
        raise fields.error(field, f"= {original!r} is not a positive integer")
    if max_positions > original * factor:
        raise fields.error(
            field, f"= {original} times the factor {factor:g} is less than max_position_embeddings = {max_positions}: vLLM ends there"
        )
    truncate = parameters.get("truncate", True)
    if not isinstance(truncate, bool):
        raise fields.error(f"{name}.truncate", f"= {truncate!r} is not true or false")
    bounds = {beta: fields.positive_float(f"{name}.{beta}", parameters.get(beta, default)) for beta, default in _BETAS.items()}
    return Yarn(factor, original, bounds["beta_fast"], bounds["beta_slow"], _attention_factor(fields, name, parameters), truncate)


_BETAS = {"beta_fast": 32, "beta_slow": 1}


def _attention_factor(fields: ConfigFields, name: str, parameters: Mapping[str, Any]) -> float:
    factor, given = float(parameters["factor"]), parameters.get("attention_factor")
    if given is not None:
        stated = fields.positive_float(f"{name}.attention_factor", given)
        if factor == 1 and stated != 1:
            raise fields.error(f"{name}.attention_factor", f"= {given} is not supported with a factor of 1")
        return stated
    mscale, of_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and of_all:
        scales = [fields.positive_float(f"{name}.{key}", value) for key, value in (("mscale", mscale), ("mscale_all_dim", of_all))]
        return _concentration(factor, scales[0]) / _concentration(factor, scales[1])
    return _concentration(factor, 1.0)


def _concentration(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0
