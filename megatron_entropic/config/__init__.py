"""The settings of a run.

schema.py     every setting: typed, bounded, documented dataclasses; one Config describes one run
control.py    those of entropy control, and the presets of released code
rollout.py    those of rollouts: engine, servers, sampling
profiling.py  those of traces, memory snapshots and MFU
sweep.py      the runs that settings with several values mean
values.py     what a text means for a field of a type
loading.py    how a Config is read from a recipe or a file, overridden and saved
resume.py     what a resumed run may change of the settings it was saved with
reference.py  the reference page of all settings
"""

from megatron_entropic.config.control import ControlConfig
from megatron_entropic.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    CheckpointConfig,
    Config,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ProfileConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TaskConfig,
    TrainerConfig,
)

__all__ = [
    "AlgorithmConfig",
    "BatchConfig",
    "CheckpointConfig",
    "Config",
    "ControlConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ProfileConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "TaskConfig",
    "TrainerConfig",
]
