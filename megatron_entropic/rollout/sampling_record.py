"""rollouts/sampling.json: what recorded rollouts were sampled by, so that a replay is of the same distribution or refused.

    [{"first_step": 0, "engine": "vllm", "temperature": 1.0, "model": "5f0c..."}]      from that step on, until the next entry

`model` is a checksum of values of the base model's weights, the same for every format they are kept in. Records of versions that
wrote no such file are judged by the config.yaml of their run, which lies beside rollouts/.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_entropic.checkpoint_files.kind import holds_distributed_weights, model_folder
from megatron_entropic.config import ModelConfig, RolloutConfig
from megatron_entropic.config.loading import load_config
from megatron_entropic.conversion.view import DistributedView
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.files import HFReader
from megatron_entropic.rollout.types import RolloutError
from megatron_entropic.system.atomic_files import write_atomically

logger = logging.getLogger(__name__)

NAME = "sampling.json"
_TENSORS, _ROWS = 16, 4
"""Of a model so many tensors, evenly spaced in the order of their names, are looked at, and of each so many rows."""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of the rollouts from `first_step` on; None: not known."""

    first_step: int
    engine: str
    temperature: float
    model: str | None


def record_sampling(run_dir: Path, model: ModelConfig, rollout: RolloutConfig, first_step: int) -> None:
    """Writes down what the run samples by from `first_step` on, below its folder; a replay passes on what its source says."""
    folder = run_dir / "rollouts"
    earlier = [entry for entry in _read(folder) if entry.first_step < first_step]
    if rollout.engine == "replay":
        assert rollout.replay_path is not None
        entries = _known(rollout.replay_path)
    else:
        checksum = earlier[-1].model if earlier else model_checksum(model)  # a resumed run's base model may be gone
        now = Sampling(first_step, rollout.engine, rollout.temperature, checksum)
        same = earlier and asdict(earlier[-1]) | {"first_step": first_step} == asdict(now)
        entries = earlier if same else [*earlier, now]
    if entries:
        write_atomically(folder / NAME, (json.dumps([asdict(entry) for entry in entries]) + "\n").encode())


def check_replay(model: ModelConfig, rollout: RolloutConfig) -> None:
    """Refuses to replay what was sampled at another temperature or from another model. Reads a few rows of the model's weights.

    Raises RolloutError naming the record. What cannot be known is one warning.
    """
    path = rollout.replay_path
    assert path is not None
    if not path.is_dir():
        return  # which the engine says
    entries, ours = _known(path), model_checksum(model)
    if not entries:
        logger.warning(
            "warning: %s: neither %s nor the run's config.yaml beside it says at which temperature and from which model these "
            "rollouts were sampled; rollout/logprob_gap shows whether they fit",
            path,
            NAME,
        )
    for entry in entries:
        from_step = f"{path}: sampled from step {entry.first_step} on by rollout.engine={entry.engine}"
        if entry.temperature != rollout.temperature:
            raise RolloutError(
                f"{from_step} at rollout.temperature={entry.temperature:g}, not {rollout.temperature:g}: log-probs and entropy are "
                "those of the sampling temperature; give the same"
            )
        if None not in (entry.model, ours) and entry.model != ours:
            raise RolloutError(f"{from_step} from another model than model.hf_path={model.hf_path}: give the recorded run's")


def model_checksum(model: ModelConfig) -> str | None:
    """A checksum of a few rows of the weights, whatever their format; None where there are none."""
    folder = model_folder(model.hf_path)
    distributed = holds_distributed_weights(folder.weights)
    if not distributed and not any(folder.weights.glob("*.safetensors")):
        return None
    digest = hashlib.sha256()
    arch = Architecture.from_hf(folder.hf_dir)
    with DistributedView(folder.weights, arch) if distributed else HFReader(folder.weights) as tensors:
        names = sorted(tensors.names())
        for name in names[:: max(1, len(names) // _TENSORS)]:
            rows = tensors.read_rows(name, 0, min(_ROWS, tensors.shape(name)[0])).float().contiguous()
            digest.update(f"{name} {list(tensors.shape(name))}".encode() + rows.numpy().tobytes())
    return digest.hexdigest()


def _known(folder: Path) -> Sequence[Sampling]:
    """The sampling of a record, as its own file or the run it belongs to has it; empty when neither does."""
    if (folder / NAME).is_file():
        return _read(folder)
    settings = folder.parent / "config.yaml"
    if not settings.is_file():
        return []
    cfg = load_config(settings)
    if cfg.rollout.engine == "replay":
        return _known(cfg.rollout.replay_path) if cfg.rollout.replay_path and cfg.rollout.replay_path != folder else []
    model = model_checksum(cfg.model) if (model_folder(cfg.model.hf_path).hf_dir / "config.json").is_file() else None
    return [Sampling(0, cfg.rollout.engine, cfg.rollout.temperature, model)]


def _read(folder: Path) -> list[Sampling]:
    path = folder / NAME
    if not path.is_file():
        return []
    try:
        return [Sampling(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise RolloutError(f"{path}: not a record of how rollouts were sampled ({error}); copy it again") from error
