"""Kills runs and damages their checkpoints, again and again, and shows that nothing of it can be told from what they compute.

    python -m tests.faults.campaign --faults 100 --seed 7 [--variants local,layouts] [--folder DIR]

A run is started, killed, resumed, killed ... until it is through; then its metrics are compared with those of a run that was
left alone. After every fault: no process is left, the latest checkpoint is intact unless it was damaged on purpose, and then a
plain resume names the damaged file and refuses, and one with --allow-fallback resumes.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_entropic.checkpoint_files.manifest import check
from megatron_entropic.checkpoint_files.store import CheckpointStore, CheckpointStoreError
from megatron_entropic.observability.metrics import read_metrics
from tests.command_line import megatron_entropic
from tests.faults.faults import Damage, Kill
from tests.running import Running
from tests.tiny_models import TINY_DECOMPOSE, save_divisible

STEPS = 14
SETTINGS = (
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "batch.max_tokens_per_micro_batch=512",
    "control.probe_updates=4",
    "checkpoint.every=2",
    f"trainer.steps={STEPS}",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
    f"model.hf_path={TINY_DECOMPOSE}",
)
ONE, TENSOR, DATA = ["parallel.tensor=1"], ["parallel.tensor=2"], ["parallel.tensor=1", "parallel.data=2"]
COMPARED = ("policy/entropy", "control/alpha", "grad_norm", "loss/total", "control/plant_gain", "reward/mean")


@dataclass(frozen=True)
class Variant:
    """A kind of run: the layouts it is resumed under in turn. One layout: equal bit for bit. Several: to rounding."""

    name: str
    layouts: Sequence[list[str]]
    replayed: bool = False
    settings: Sequence[str] = ()


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("local", [TENSOR]),
        # A small learning rate: roundings that differ between layouts grow with every update, killed or not.
        Variant("layouts", [TENSOR, DATA, ONE], replayed=True, settings=["optimizer.lr=2e-5"]),
        Variant("one_rank", [ONE], settings=["batch.mini_batches=2"]),
        Variant("replay", [DATA], replayed=True),
        Variant("stale", [TENSOR], settings=["rollout.max_staleness=1"]),
    )
}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(("time/", "perf/"))} for line in lines]


def problems_of_latest(run_dir: Path) -> list[str]:
    """Problems of the latest checkpoint; empty when there is none yet."""
    store = CheckpointStore(run_dir / "checkpoints")
    try:
        name = store.latest()
    except CheckpointStoreError as error:
        return [str(error)]
    if name is None:
        return []
    return [f"{name}: {problem}" for problem in check(store.folder / name)]


@dataclass
class Campaign:
    """`faults` faults on runs under `folder`, drawn from `seed`. `run` raises AssertionError at the first that does not hold."""

    folder: Path
    seed: int
    variants: Sequence[Variant]
    kills: int = 0
    damages: int = 0
    references: dict[str, Path] = field(default_factory=dict)

    def run(self, faults: int) -> None:
        rng = random.Random(self.seed)
        turn = 0
        share = -(-faults // len(self.variants))
        while self.kills + self.damages < faults:
            variant = self.variants[turn % len(self.variants)]
            turn += 1
            self._torment(variant, self.folder / f"{turn:02d}-{variant.name}", min(faults, self.kills + self.damages + share), rng)

    def _torment(self, variant: Variant, run_dir: Path, enough: int, rng: random.Random) -> None:
        """One run from its start to its end, with faults until there are `enough`."""
        reference = self._reference(variant)
        resumes, damaged = 0, False
        arguments = ["train", "quickstart", *self._settings(variant, 0), f"run.dir={run_dir}"]
        while self.kills + self.damages < enough:
            kill = Kill.draw(rng)
            with Running(run_dir, *arguments) as running:
                struck = kill.strike(running, self._world_size(variant, resumes), rng)
                code = running.wait()
            if not struck:
                assert code == 0, running.output
                break
            self.kills += 1
            started = (run_dir / "config.yaml").exists()
            # A resume that was killed before it could fall back leaves the damage as it was.
            damaged = damaged and bool(problems_of_latest(run_dir))
            damage = None if damaged else self._maybe_damage(run_dir, rng)
            damaged = damaged or damage is not None
            self._say(variant, run_dir, kill, damage)
            resumes += 1 if started else 0
            if started:
                arguments = ["train", str(run_dir), *self._layout(variant, resumes), "--resume"]
            if damage:
                self._refused(arguments, damage)
            if damaged:
                arguments.append("--allow-fallback")
        outcome = megatron_entropic(*arguments)
        assert outcome.code == 0, outcome.output
        assert not outcome.left_behind
        self._compare(variant, lines_of(run_dir), lines_of(reference))
        print(f"[{variant.name}] {run_dir.name}: {len(lines_of(run_dir))} steps equal those of the undisturbed run", flush=True)

    def _maybe_damage(self, run_dir: Path, rng: random.Random) -> Damage | None:
        """Damages a file of the latest checkpoint, in half of the cases, when there is one to fall back to."""
        store = CheckpointStore(run_dir / "checkpoints")
        problems = problems_of_latest(run_dir)
        assert not problems, f"a kill left a damaged checkpoint: {problems}"
        name = store.latest()
        if name is None:
            return None
        if rng.random() > 0.5 or not store.before(name):
            return None
        damage = Damage.draw(store.folder / name, rng)
        damage.inflict(rng)
        self.damages += 1
        return damage

    def _refused(self, arguments: list[str], damage: Damage) -> None:
        outcome = megatron_entropic(*arguments)
        assert outcome.code != 0, f"{damage} was not noticed:\n{outcome.output}"
        assert "pass --allow-fallback" in outcome.output, outcome.output
        assert "Traceback" not in outcome.output, outcome.output
        named = damage.path.name in outcome.output or damage.path.name == "manifest.json"
        assert named, f"{damage} was not named:\n{outcome.output}"
        assert not outcome.left_behind

    def _compare(self, variant: Variant, lines: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
        if len(variant.layouts) == 1:
            assert lines == expected
            return
        assert len(lines) == len(expected) == STEPS
        for line, other in zip(lines, expected, strict=True):
            for name in COMPARED:
                assert abs(line[name] - other[name]) <= 1e-5 * abs(other[name]) + 1e-6, (line["step"], name, line[name], other[name])

    def _reference(self, variant: Variant) -> Path:
        """The folder of an undisturbed run to compare with."""
        # Runs under changing layouts are compared with the run that was recorded.
        if len(variant.layouts) > 1:
            return self._recorded(variant)
        return self._undisturbed(variant.name, self._settings(variant, 0))

    def _recorded(self, variant: Variant) -> Path:
        """The folder of an undisturbed run whose rollouts `variant` replays."""
        return self._undisturbed(f"{variant.name}-recorded", [*SETTINGS, *self._own(variant), "rollout.engine=local", *ONE])

    def _undisturbed(self, name: str, settings: list[str]) -> Path:
        if name not in self.references:
            folder = self.folder / f"undisturbed-{name}"
            outcome = megatron_entropic("train", "quickstart", *settings, f"run.dir={folder}")
            assert outcome.code == 0, outcome.output
            self.references[name] = folder
        return self.references[name]

    def _own(self, variant: Variant) -> list[str]:
        if len(variant.layouts) == 1:
            return list(variant.settings)
        model = self.folder / "model"
        return [*variant.settings, f"model.hf_path={model if model.exists() else save_divisible(model)}"]

    def _settings(self, variant: Variant, resumes: int) -> list[str]:
        engine = ["rollout.engine=local"]
        if variant.replayed:
            engine = ["rollout.engine=replay", f"rollout.replay_path={self._recorded(variant) / 'rollouts'}"]
        return [*SETTINGS, *engine, *self._own(variant), *self._layout(variant, resumes)]

    @staticmethod
    def _layout(variant: Variant, resumes: int) -> list[str]:
        axes = {"parallel.tensor": "1", "parallel.data": "1"}
        axes.update(setting.split("=") for setting in variant.layouts[resumes % len(variant.layouts)])  # type: ignore[arg-type]
        return [f"{axis}={size}" for axis, size in axes.items()]

    def _world_size(self, variant: Variant, resumes: int) -> int:
        size = 1
        for setting in self._layout(variant, resumes):
            size *= int(setting.split("=")[1])
        return size

    def _say(self, variant: Variant, run_dir: Path, kill: Kill, damage: Damage | None) -> None:
        metrics = run_dir / "metrics.jsonl"
        steps = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        latest = run_dir / "checkpoints" / "latest"
        partial = [path.name.split(".")[1] for path in run_dir.glob("checkpoints/.step-*")]
        at = f"{steps} steps done" + (f", {latest.read_bytes()[:11].decode(errors='replace')}" if latest.exists() else "")
        at += f", {partial[0]} half written" if partial else ""
        then = f"; {damage.kind} {damage.path.relative_to(run_dir)}" if damage else ""
        print(f"[{variant.name}] fault {self.kills + self.damages}: {kill.target} killed at {kill.moment} ({at}){then}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="repeats a campaign's draws; default: random, printed")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=None, help="where the runs go; default: a temporary folder")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        campaign = Campaign(folder, seed, [VARIANTS[name] for name in options.variants.split(",")])
        campaign.run(options.faults)
    print(f"seed {seed}: {campaign.kills} kills and {campaign.damages} damaged files survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
