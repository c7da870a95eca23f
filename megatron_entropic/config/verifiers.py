"""The verifiers of rows by name, and what a row of a data file may say of its own."""

from collections.abc import Mapping

VERIFIERS = {
    "math": "megatron_entropic.tasks.verifiers.maths:make_math",
    "exact": "megatron_entropic.tasks.verifiers.exact:make_exact",
}
"""The verifiers that come with the project: by name what makes one of its options; imported when it is used."""
VERIFIER_ENTRY_POINTS = "megatron_entropic.verifiers"

ROW_OPTIONS: Mapping[str, tuple[str, ...]] = {"math": (), "exact": ()}
"""The verifiers that a row of a data file may name, with the options it may give: none names code."""


def row_verifier_problem(name: object, options: Mapping[str, object]) -> str:
    """The reason why a row may not ask for the verifier `name` with `options`; empty when it may."""
    if not isinstance(name, str) or name not in ROW_OPTIONS:
        return f"a row cannot name the verifier {str(name)[:60]!r}; it may name {', '.join(ROW_OPTIONS)}"
    if other := [option for option in options if option not in ROW_OPTIONS[name]]:
        return f"a row cannot set the option {str(other[0])[:60]!r} of {name}; it may set {', '.join(ROW_OPTIONS[name]) or 'none'}"
    return ""
