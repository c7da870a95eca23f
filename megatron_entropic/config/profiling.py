"""Settings of what is measured of a run beside its training: traces, memory, marks, the peak that MFU is a fraction of."""

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from megatron_entropic.config.control import STRICT


@dataclass(frozen=True, config=STRICT)
class ProfileConfig:
    """What is measured beside training. docs/profiling.md."""

    steps: tuple[int, ...] = Field(
        default=(),
        description="[first, last]: torch's profiler records these steps, counted from 1, a Chrome trace for each under profile/; "
        "[]: none",
    )
    ranks: tuple[int, ...] = Field(default=(0,), description="ranks that record")
    stacks: bool = Field(default=False, description="traces also say which line of Python called; slower, and larger files")
    memory: bool = Field(
        default=False,
        description="in the last of profile.steps what holds memory is written under profile/; on a GPU also torch's memory snapshot",
    )
    max_trace_mb: float = Field(
        default=500.0,
        gt=0,
        description="MB on the disk of a rank's traces together; one that goes beyond is not kept, and is the last",
    )
    marks: bool = Field(
        default=False,
        description="phases and micro-batches are marked for nsys (NVTX) in every step; traces have the marks of their steps anyway",
    )
    peak_tflops: float = Field(
        default=0.0,
        ge=0,
        description="dense peak of a device in the model's dtype, TFLOP/s, for perf/*_mfu; 0: that of bfloat16 for known GPUs, "
        "none for others and for CPUs",
    )

    @field_validator("steps")
    @classmethod
    def _a_window(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise ValueError("must be [first, last] with 1 <= first <= last, such as [10, 12]; [] for none")
        return steps

    @field_validator("ranks")
    @classmethod
    def _some_ranks(cls, ranks: tuple[int, ...]) -> tuple[int, ...]:
        if not ranks or min(ranks) < 0 or len(set(ranks)) < len(ranks):
            raise ValueError("must list ranks from 0 on, each once, such as [0, 1]")
        return ranks
