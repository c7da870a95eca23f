"""The peak of the GPU that a run computes on, by the name that its driver gives it."""

from megatron_entropic.planning.cluster import GPUS

_BY_NAME = (
    # The first whose words are all in the name; a PCIe card has less than the module of its number.
    (("H100", "PCIe"), 756.0),
    (("H100", "NVL"), 835.0),
    (("GH200",), GPUS["h100"].tflops),
    (("GB200",), 2500.0),
    (("H100",), GPUS["h100"].tflops),
    (("H200",), GPUS["h200"].tflops),
    (("H800",), GPUS["h100"].tflops),
    (("H20",), 148.0),
    (("B200",), GPUS["b200"].tflops),
    (("A100",), GPUS["a100"].tflops),
    (("A800",), GPUS["a100"].tflops),
    (("L40S",), GPUS["l40s"].tflops),
    (("L40",), 181.0),
    (("L4",), 121.0),
    (("A10G",), 70.0),
    (("A10",), 125.0),
)
"""Dense bfloat16 TFLOP/s by data sheet."""


def peak_tflops(device_name: str) -> float | None:
    """Dense bfloat16 TFLOP/s of a GPU; None for one that is not in the table."""
    words = device_name.replace("-", " ").split()
    return next((peak for needed, peak in _BY_NAME if all(word in words for word in needed)), None)


def gpu_kind(device_name: str) -> str | None:
    """The row of planning's GPUS that a GPU is, by the name that its driver gives it; None for one that planning does not know."""
    words = device_name.replace("-", " ").split()
    small = "a100-40" if "40GB" in words or "PG509" in words else "a100"
    named = {"GH200": "h100", "A100": small} | {kind.upper(): kind for kind in GPUS if "a100" not in kind}
    return next((kind for word, kind in named.items() if word in words), None)
