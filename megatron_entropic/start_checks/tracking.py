"""What trackers, alerts and the Prometheus endpoint need, before anything is started: packages, a variable, a free port."""

import importlib.util

from megatron_entropic.config import Config
from megatron_entropic.config.alerts import webhook_address
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.config.tracking import address_taken, mlflow_uri
from megatron_entropic.system.rendezvous import listen

EXTRAS = {"wandb": "wandb", "mlflow": "mlflow"}
"""By tracker, the package that it needs, which is also the extra that brings it."""
_DATABASES = ("sqlite:", "postgresql", "mysql", "mssql")
"""How MLflow's URIs of databases begin."""


def check_tracking(cfg: Config) -> None:
    """Raises ConfigError, or ValueError, naming the setting and what to do."""
    for name in cfg.trainer.trackers:
        package = EXTRAS.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"trainer.trackers={name} needs the package {package}, which is not installed: pip install megatron-entropic[{package}]"
            )
    if "mlflow" in cfg.trainer.trackers:
        _check_mlflow(mlflow_uri(cfg.tracking, cfg.run_dir))
    webhook_address(cfg.alerts)
    if cfg.tracking.prometheus_port:
        try:
            listen(cfg.tracking.prometheus_host, cfg.tracking.prometheus_port).close()
        except OSError as error:
            raise ConfigError(address_taken(cfg.tracking, error)) from error


def _check_mlflow(uri: str) -> None:
    if uri.startswith(_DATABASES) and importlib.util.find_spec("sqlalchemy") is None:
        raise ConfigError(
            f"trainer.trackers=mlflow: its tracking URI is a database ({uri.partition(':')[0]}), for which mlflow-skinny is "
            "not enough: pip install mlflow; or set tracking.mlflow_uri to a folder or a server"
        )
