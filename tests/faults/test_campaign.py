"""Ten faults in every CI run; `python -m tests.faults.campaign` makes hundreds."""

import os
import random
from pathlib import Path

import pytest

from megatron_entropic.observability.metrics import read_metrics
from tests.command_line import megatron_entropic
from tests.faults.campaign import SETTINGS, VARIANTS, Campaign
from tests.faults.faults import Damage, Kill
from tests.running import Running

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
FAULTS = 10


@pytest.mark.timeout(1800)
def test_nothing_is_lost_and_nothing_changes(tmp_path: Path) -> None:
    """Kills and damage on runs of one and two ranks; MEGATRON_ENTROPIC_SEED repeats a campaign."""
    seed = int(os.environ.get("MEGATRON_ENTROPIC_SEED", str(random.randrange(10**6))))
    print(f"MEGATRON_ENTROPIC_SEED={seed}")
    campaign = Campaign(tmp_path, seed, [VARIANTS["local"], VARIANTS["layouts"]])
    campaign.run(FAULTS)
    assert campaign.kills + campaign.damages >= FAULTS
    assert campaign.kills >= FAULTS // 2


@pytest.mark.parametrize("kind", ["flip", "truncate", "zeros", "append"])
def test_damage_always_changes_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    for seed in range(20):
        content = bytes([0] * 70) if seed % 2 else bytes(range(100))
        path.write_bytes(content)
        Damage(kind, path).inflict(random.Random(seed))
        assert path.read_bytes() != content


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_run_with_real_servers_survives_kills_during_sync_and_rollout(tmp_path: Path) -> None:
    folder, rng = tmp_path / "run", random.Random(0)
    settings = [*SETTINGS, "parallel.tensor=1", "rollout.engine=vllm", "rollout.servers=1", "checkpoint.every=1", "trainer.steps=5"]
    arguments = ["train", "quickstart", *settings, f"run.dir={folder}"]
    for kill in (Kill("rank", "sync", 1, 0.01), Kill("launcher", "rollout", 1, 0.02)):
        with Running(folder, *arguments) as running:
            assert kill.strike(running, 1, rng), running.output
            assert running.wait(60) != 0  # and no server is left: `wait` looks for every descendant
        arguments = ["train", str(folder), "--resume"]
    outcome = megatron_entropic(*arguments)
    assert outcome.code == 0, outcome.output
    assert not outcome.left_behind
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(5))
    assert max(line["rollout/logprob_gap"] for line in lines) < 1e-3
    assert {line["rollout/staleness_max"] for line in lines} == {0}
