"""The settings of trackers (`trainer.trackers` names them) and of the Prometheus endpoint."""

import os
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from megatron_entropic.config.control import STRICT

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """Trackers of metrics, samples and alerts, and an endpoint for Prometheus. docs/trackers.md."""

    samples_every: int = Field(
        default=50, ge=0, description="steps between two tables of samples (prompt, response, reward) that trackers get; 0 is off"
    )
    samples: int = Field(default=4, ge=1, le=1000, description="rollouts in such a table, spread evenly over the step's")
    queue: int = Field(
        default=1000, ge=1, description="what may wait for a slow tracker, in steps, tables and alerts; what comes then, it misses"
    )
    flush_s: float = Field(default=30.0, ge=0, description="how long the end of a run waits for what trackers have not taken yet")
    wandb_project: str = Field(default="megatron-entropic", description="project at W&B; WANDB_PROJECT wins")
    wandb_entity: str = Field(default="", description="user or team at W&B; empty: WANDB_ENTITY, or the account's own")
    wandb_group: str = Field(default="", description="group of runs at W&B that this one belongs to")
    wandb_tags: tuple[str, ...] = Field(default=(), description="tags of the run at W&B")
    wandb_rewind: bool = Field(
        default=False,
        description="a resumed run rewinds W&B's history to its checkpoint (resume_from, where the server offers it); else W&B "
        "keeps what the killed run logged of later steps",
    )
    mlflow_uri: str = Field(
        default="", description="MLflow's tracking URI; empty: MLFLOW_TRACKING_URI, or the folder mlruns beside the run's folder"
    )
    mlflow_experiment: str = Field(default="megatron-entropic", min_length=1, description="experiment at MLflow")
    prometheus_port: int = Field(
        default=0, ge=0, le=65535, description="port where rank 0 answers Prometheus at /metrics, servers' metrics included; 0 is off"
    )
    prometheus_host: str = Field(default=LOOPBACK, min_length=1, description="address that the endpoint listens on; it asks for no key")
    prometheus_timeout_s: float = Field(
        default=2.0, gt=0, description="how long a scrape waits for the servers' metrics; one that is slower counts as down"
    )


def mlflow_uri(tracking: TrackingConfig, run_dir: Path) -> str:
    """The URI that MLflow is asked for: of the settings, of MLFLOW_TRACKING_URI, or the folder mlruns beside the run's."""
    return tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or (run_dir.absolute().parent / "mlruns").as_uri()


def address_taken(cfg: TrackingConfig, error: OSError) -> str:
    """The error for an endpoint whose address cannot be listened on."""
    return (
        f"tracking.prometheus_port={cfg.prometheus_port}: cannot listen on {cfg.prometheus_host} port {cfg.prometheus_port}: "
        f"{error.strerror or error}; choose a free port, or 0 for none, and for tracking.prometheus_host an address of this machine"
    )
