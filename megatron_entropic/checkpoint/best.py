"""The best checkpoint of a run, by a metric of validation: which one it is, also after a resume."""

import logging
import math
from collections.abc import Mapping

from megatron_entropic.checkpoint_files.store import CheckpointStore, name_of
from megatron_entropic.config import Config
from megatron_entropic.config.validation import HIGHER_IS_BETTER
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.rank_zero import from_rank_zero
from megatron_entropic.observability.metrics import read_metrics

logger = logging.getLogger(__name__)


class BestCheckpoint:
    """The best value of validation.best so far, equal on all ranks; of equal values the first stays the best.

    Which of the statistics are better when they are lower: HIGHER_IS_BETTER of config/validation.py.
    """

    def __init__(self, cfg: Config, parallel: Parallel, store: CheckpointStore) -> None:
        self.metric = cfg.validation.best
        self.parallel = parallel
        self.store = store
        self._path = cfg.run_dir / "metrics.jsonl"
        self._sign = 1.0 if HIGHER_IS_BETTER.get(self.metric.rpartition("/")[2], True) else -1.0
        self.value: float | None = None

    def takes(self, validated: Mapping[str, float]) -> bool:
        """Whether the policy that was `validated` is better than all before; it is the best from then on."""
        value = validated.get(self.metric)
        if value is None or math.isnan(value) or (self.value is not None and self._sign * value <= self._sign * self.value):
            return False
        self.value = value
        return True

    def restore(self, step: int) -> None:
        """Finds the best of the checkpoints up to `step` that are there, by metrics.jsonl, and names it. Collective over all ranks.

        Names it anew after a kill between two writes, a fallback to an earlier checkpoint, or with another metric than before.
        """
        if self.metric:
            self.value = from_rank_zero(self.parallel, self._find, step, doing="the best checkpoint to be found")

    def _find(self, step: int) -> float | None:
        names = set(self.store.names())
        best: str | None = None
        for line in read_metrics(self._path) if self._path.is_file() else []:
            name = name_of(line["step"] + 1)
            if line["step"] < step and name in names and self.takes(line):
                best = name
        if self.store.best() != best:
            logger.info("the best checkpoint by %s is %s", self.metric, best or "still to come")
            self.store.point_best_to(best)
        return self.value
