"""The verifiers of rows that come with the project, by name."""

VERIFIERS = {
    "math": "megatron_entropic.tasks.verifiers.maths:make_math",
    "exact": "megatron_entropic.tasks.verifiers.exact:make_exact",
}
"""By name what makes one of its options; imported when it is used."""
VERIFIER_ENTRY_POINTS = "megatron_entropic.verifiers"
