"""Schedule of rollout generation: up to `rollout.max_staleness` versions ahead of the trainer.

The rollouts of step k always come from weight version max(0, k - max_staleness), so a run is the same every time. With 1:

    trainer   sync 0 | wait 0 | update 0 | wait 1, sync 1 | update 1 | wait 2, sync 2 | update 2 | ...
    engine           | generate 0 | generate 1            | generate 2                | generate 3 ...
                       version 0    version 0               version 1                   version 2

Weights never change while something is generated, so more than 1 hides no more time: it only makes rollouts staler.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from megatron_entropic.rollout.types import Finished, Prompt, Rollout, RolloutEngine, RolloutError

logger = logging.getLogger(__name__)


def steps_from_version(version: int, *, max_staleness: int, steps: int) -> range:
    """The steps k < `steps` whose rollouts come from weight version `version`: those with max(0, k - max_staleness) = version."""
    first = version + max_staleness if version else 0
    return range(first, min(version + max_staleness + 1, steps))


class GenerationPipeline:
    """Generates requested steps one after the other with `engine`, which it owns. Driven by one process, rank 0.

    `background` generates in a thread from the moment of the request, which is for engines that compute in other processes;
    else generation happens where its result is taken. All rollouts requested must be taken before weights change.
    """

    def __init__(self, engine: RolloutEngine, samples_per_prompt: int, *, background: bool) -> None:
        self.engine = engine
        self.samples_per_prompt = samples_per_prompt
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generation") if background else None
        self._results: dict[int, Callable[[], list[Rollout]]] = {}

    @property
    def requested(self) -> list[int]:
        """Steps requested and not taken yet, in the order of their requests."""
        return list(self._results)

    def request(self, step: int, prompts: Sequence[Prompt], finished: Finished | None = None) -> None:
        """Has the rollouts of `step` generated from the engine's present weights. Does not wait. `finished`: see types.py."""
        generate = partial(self._generate, step, prompts, finished)
        self._results[step] = self._worker.submit(generate).result if self._worker else generate

    def take(self, step: int) -> list[Rollout]:
        """The rollouts of `step`, by prompt, then sample; waits for them. A step can be taken once.

        Raises RolloutError when generation failed, or when the step was not requested or was taken before.
        """
        result = self._results.pop(step, None)
        if result is None:
            raise RolloutError(f"the rollouts of step {step} were not requested, or were taken before; at hand: {self.requested}")
        return result()

    def close(self) -> None:
        """Drops what was requested, ends the engine, and with it a generation under way; safe to call twice."""
        if self._worker:
            self._worker.shutdown(wait=False, cancel_futures=True)
        self.engine.close()
        if self._worker:
            self._worker.shutdown(wait=True)

    def _generate(self, step: int, prompts: Sequence[Prompt], finished: Finished | None) -> list[Rollout]:
        logger.debug("step %d: generation begins", step + 1)
        start = time.monotonic()
        rollouts = self.engine.generate(prompts, self.samples_per_prompt, finished)
        logger.debug("step %d: %d rollouts generated in %.2f s", step + 1, len(rollouts), time.monotonic() - start)
        return rollouts
