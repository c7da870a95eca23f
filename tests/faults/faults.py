"""The faults of the campaign: who is killed and when, aimed from outside by a run's files and log, and damage to checkpoint files."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.running import Running

POLL_S = 0.001
MOMENTS = ("start", "rollout", "sync", "save", "any")
TARGETS = ("rank", "launcher", "everything")
DAMAGES = ("flip", "truncate", "delete", "zeros", "append")


@dataclass(frozen=True)
class Kill:
    """SIGKILL to `target` at `moment`, `delay_s` after it was seen to begin, not before `after_steps` more steps are done."""

    target: str
    moment: str
    after_steps: int
    delay_s: float

    @staticmethod
    def draw(rng: random.Random) -> "Kill":
        moment = rng.choices(MOMENTS, weights=(1, 2, 2, 4, 2))[0]
        delay_s = rng.uniform(0.0, {"start": 6.0, "any": 0.5}.get(moment, 0.03))
        return Kill(rng.choice(TARGETS), moment, rng.randint(0, 3), delay_s)

    def strike(self, running: Running, world_size: int, rng: random.Random) -> bool:
        """Waits for the moment and kills; False when the run ended before."""
        if self.moment == "start":
            time.sleep(self.delay_s)
            ranks: dict[int, psutil.Process] | None = running.ranks()
        else:
            ranks = self._wait(running, world_size)
        if ranks is None or running.process.poll() is not None:
            return False
        for victim in self._victims(running, ranks, rng):
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return True

    def _wait(self, running: Running, world_size: int) -> dict[int, psutil.Process] | None:
        """The ranks, once the moment has come; None when the run ended before."""
        steps, log_start = running.steps, len(running.log())
        if not running.wait_until(lambda: len(running.ranks()) == world_size, poll=0.2):
            return None
        ranks = running.ranks()  # now: looking for them takes longer than the moment may last
        if not running.wait_until(lambda: running.steps >= steps + self.after_steps, poll=0.005):
            return None
        seen: dict[str, Callable[[], object]] = {
            "rollout": lambda: "generation begins" in running.log()[log_start:],
            "sync": lambda: "sync begins" in running.log()[log_start:].rpartition("generation begins")[2],
            "save": lambda: any(running.run_dir.glob("checkpoints/.step-*.partial")),
            "any": lambda: True,
        }
        if not running.wait_until(seen[self.moment], poll=POLL_S):
            return None
        time.sleep(self.delay_s)
        return ranks

    def _victims(self, running: Running, ranks: dict[int, psutil.Process], rng: random.Random) -> list[int]:
        if self.target == "everything":
            return [running.process.pid, *(process.pid for process in ranks.values())]
        if self.target == "launcher" or not ranks:
            return [running.process.pid]
        return [rng.choice(sorted(ranks.items()))[1].pid]


@dataclass(frozen=True)
class Damage:
    """Damage to one file of the latest checkpoint."""

    kind: str
    path: Path

    @staticmethod
    def draw(checkpoint: Path, rng: random.Random) -> "Damage":
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        kind, path = rng.choice(DAMAGES), rng.choice([*files, checkpoint.parent / "latest"])
        # Without `latest` nothing is lost: the newest checkpoint is taken.
        return Damage("truncate" if path.name == "latest" and kind == "delete" else kind, path)

    def inflict(self, rng: random.Random) -> None:
        content = bytearray(self.path.read_bytes())
        place = rng.randrange(len(content))
        if self.kind == "delete":
            self.path.unlink()
            return
        if self.kind == "flip":
            content[place] ^= 1 << rng.randrange(8)
        elif self.kind == "truncate":
            del content[min(place, 5) if self.path.name == "latest" else place :]  # "step-000006" alone still names the right one
        elif self.kind == "zeros":
            end = min(len(content), place + 64)
            content[place:end] = bytes(end - place) if any(content[place:end]) else b"\1" * (end - place)
        else:
            content += bytes([rng.randrange(33, 127)])
        self.path.write_bytes(content)
