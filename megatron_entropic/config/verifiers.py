"""The verifiers of rows by name, and what a row of a data file may say of its own."""

from collections.abc import Mapping

_HOME = "megatron_entropic.tasks.verifiers"
VERIFIERS = {
    "math": f"{_HOME}.maths:make_math",
    "choice": f"{_HOME}.choice:make_choice",
    "exact": f"{_HOME}.exact:make_exact",
    "number": f"{_HOME}.number:make_number",
    "regex": f"{_HOME}.regex:make_regex",
    "json_schema": f"{_HOME}.json_schema:make_json_schema",
    "code": f"{_HOME}.code:make_code",
    "reasoning_gym": f"{_HOME}.gym:make_gym",
    "format": f"{_HOME}.response_format:make_format",
    "judge": f"{_HOME}.judge:make_judge",
    "reward_model": f"{_HOME}.reward_model:make_reward_model",
    "sum": f"{_HOME}.weighted_sum:make_sum",
}
"""The verifiers that come with the project: by name what makes one of its options; imported when it is used."""
VERIFIER_ENTRY_POINTS = "megatron_entropic.verifiers"

_EXTRACTION = ("extract",)
ROW_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "math": (),
    "choice": (*_EXTRACTION, "index_base"),
    "exact": (*_EXTRACTION, "ignore_case", "ignore_space"),
    "number": (*_EXTRACTION, "absolute", "relative"),
    "regex": (*_EXTRACTION, "pattern", "ignore_case", "whole"),
    "json_schema": (*_EXTRACTION, "schema"),
    "code": ("partial", "tolerance"),
    "reasoning_gym": ("dataset",),
    "format": ("tags",),
}
"""The verifiers that a row of a data file may name, with the options it may give: none names code, a file, a server or a key, and
none lifts a limit. Whoever wrote the data is not who runs it."""


def row_verifier_problem(name: object, options: Mapping[str, object]) -> str:
    """The reason why a row may not ask for the verifier `name` with `options`; empty when it may."""
    if not isinstance(name, str) or name not in ROW_OPTIONS:
        return f"a row cannot name the verifier {str(name)[:60]!r}; it may name {', '.join(ROW_OPTIONS)}"
    if other := [option for option in options if option not in ROW_OPTIONS[name]]:
        return f"a row cannot set the option {str(other[0])[:60]!r} of {name}; it may set {', '.join(ROW_OPTIONS[name]) or 'none'}"
    return ""
