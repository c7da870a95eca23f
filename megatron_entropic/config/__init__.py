"""The settings of a run.

schema.py     every setting: typed, bounded, documented dataclasses; one Config describes one run
control.py    those of entropy control, and the presets of released code
rollout.py    those of rollouts: engine, servers, sampling
data.py       those of data: sources, what of them is asked, curriculum
validation.py those of validation: sets of problems, their presets
reward.py     those of rewards: verification and what length costs
verifiers.py  the table of verifiers of rows, and what a row may say of its own
tracking.py   those of trackers and the Prometheus endpoint
alerts.py     those of alerts
secrets.py    which settings are secrets, and how they are shown
profiling.py  those of traces, memory snapshots and MFU
sweep.py      the runs that settings with several values mean
values.py     what a text means for a field of a type
loading.py    how a Config is read from a recipe or a file, overridden and saved
resume.py     what a resumed run may change of the settings it was saved with
reference.py  the reference page of all settings
"""

from megatron_entropic.config.control import ControlConfig
from megatron_entropic.config.data import DataConfig, DataSource
from megatron_entropic.config.schema import (
    AlertsConfig,
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
    TrackingConfig,
    TrainerConfig,
    ValidationConfig,
)

__all__ = [
    "AlertsConfig",
    "AlgorithmConfig",
    "BatchConfig",
    "CheckpointConfig",
    "Config",
    "ControlConfig",
    "DataConfig",
    "DataSource",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ProfileConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainerConfig",
    "ValidationConfig",
]
