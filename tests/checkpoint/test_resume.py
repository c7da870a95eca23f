"""Resume equals no interruption: bit for bit under the same layout, to rounding under another; damage is found before it is used."""

import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.checkpoint_files.manifest import check
from megatron_entropic.checkpoint_files.store import CheckpointStore
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Measurement
from megatron_entropic.control.steering import Steering
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.trainer import train
from tests.command_line import megatron_entropic
from tests.run_ranks import run_ranks
from tests.tiny_models import TINY_DECOMPOSE, save_divisible

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = 8
BASE = (
    "rollout.engine=local",
    "batch.prompts_per_step=8",
    "batch.samples_per_prompt=4",
    "batch.max_tokens_per_micro_batch=512",
    "control.probe_updates=4",
    "checkpoint.every=2",
    "trainer.tensorboard=false",
    "trainer.export_hf=false",
    f"model.hf_path={TINY_DECOMPOSE}",
)
VARIANTS = {
    "on-policy": (),
    "off-policy": ("batch.mini_batches=2",),
    "stale": ("rollout.max_staleness=1",),
    "exact": ("control.actuator=exact",),
    "entropic+aent": ("control.kind=entropic+aent", "control.coefficient_warmup_steps=0"),
}


def run_steps(folder: Path, steps: int, *settings: str) -> list[dict[str, Any]]:
    """Trains the run in `folder` up to `steps`, from its latest checkpoint if there is one; its metrics without the times."""
    cfg = load_config("quickstart", [*BASE, f"run.dir={folder}", f"trainer.steps={steps}", *settings])
    run_ranks(_train, cfg.parallel.world_size, cfg, timeout=300)
    return without_times(folder)


def _train(cfg: Config) -> None:
    train(cfg, initialize_parallel(cfg.parallel, cfg.trainer.seed))


def without_times(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(("time/", "perf/"))} for line in lines]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path, variant: str) -> None:
    settings = ("parallel.tensor=1", *VARIANTS[variant])
    whole = run_steps(tmp_path / "whole", STEPS, *settings)
    run_steps(tmp_path / "parts", 3, *settings)
    # As after a kill: a checkpoint of step 2 is the latest, and step 2's line and rollouts are there already.
    shutil.rmtree(tmp_path / "parts/checkpoints/step-000003")
    (tmp_path / "parts/checkpoints/latest").write_text("step-000002\n")
    resumed = run_steps(tmp_path / "parts", STEPS, *settings)
    assert resumed == whole
    assert len(whole) == STEPS
    assert len({line["control/alpha"] for line in whole}) > 3, "nothing was steered"


def heard_by_the_controller(cfg: Config) -> list[tuple[int, float]]:
    """(updates executed, response) of every measurement that reaches the controller while `cfg` trains to its end."""
    heard, step = [], Steering.step

    def hear(controller: Steering, measured: Measurement) -> None:
        heard.append((measured.executed, measured.response))
        step(controller, measured)

    Steering.step = hear  # type: ignore[method-assign]
    _train(cfg)
    return heard


def test_the_response_of_the_update_before_a_checkpoint_is_not_lost(tmp_path: Path) -> None:
    """With several mini-batches the last one's response waits for the next batch's first measurement: also across a checkpoint."""

    def train(folder: str, steps: int) -> list[tuple[int, float]]:
        settings = ["parallel.tensor=1", "batch.mini_batches=2", f"run.dir={tmp_path / folder}", f"trainer.steps={steps}"]
        (heard,) = run_ranks(heard_by_the_controller, 1, load_config("quickstart", [*BASE, *settings]), timeout=300)
        return heard

    whole = train("whole", 4)
    assert [executed for executed, _ in whole] == list(range(8))
    assert all(math.isfinite(response) for executed, response in whole if executed)
    assert str(train("parts", 2) + train("parts", 4)) == str(whole)  # as text, in which a NaN equals another


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        (["parallel.tensor=1"], ["parallel.tensor=2"]),
        (["parallel.tensor=2"], ["parallel.tensor=1", "parallel.pipeline=2"]),
        (["parallel.tensor=1", "parallel.pipeline=2"], ["parallel.tensor=1", "parallel.data=2"]),
        (["parallel.tensor=1", "parallel.data=2"], ["parallel.tensor=1"]),
        (["parallel.tensor=2", "parallel.data=2"], ["parallel.tensor=2", "parallel.data=2"]),
    ],
)
def test_a_run_resumes_under_another_layout(tmp_path: Path, saved: list[str], resumed: list[str]) -> None:
    """Replayed, so that a token sampled differently after a rounding does not make another run of it."""
    model = f"model.hf_path={save_divisible(tmp_path / 'model')}"
    run_steps(tmp_path / "record", STEPS, "parallel.tensor=1", model)
    replay = ("rollout.engine=replay", f"rollout.replay_path={tmp_path / 'record' / 'rollouts'}", model)
    run_steps(tmp_path / "run", 4, *replay, *saved)
    lines = run_steps(tmp_path / "run", STEPS, *replay, *resumed)
    for line, expected in zip(lines, without_times(tmp_path / "record"), strict=True):
        for name in ("policy/entropy", "control/alpha", "grad_norm", "loss/total", "control/plant_gain"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), (line["step"], name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    outcome = megatron_entropic("train", "quickstart", *BASE, "parallel.tensor=1", "trainer.steps=2", f"run.dir={folder}")
    assert outcome.code == 0, outcome.output
    return folder


def resume(folder: Path, *settings: str) -> str:
    """Output of a resume that is to be refused."""
    outcome = megatron_entropic("train", str(folder), "trainer.steps=4", *settings, "--resume")
    assert outcome.code != 0, outcome.output
    assert "Traceback" not in outcome.output
    return outcome.output


def test_a_checkpoint_holds_all_of_the_model_but_weights_byte_for_byte(finished: Path) -> None:
    copies = {path.name: path.read_bytes() for path in (finished / "checkpoints/step-000002/hf").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= copies.keys()
    assert copies == {name: (TINY_DECOMPOSE / name).read_bytes() for name in copies}


def test_every_damage_is_found_and_named(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-000002"
    names = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
    assert len(names) >= 10
    rng = random.Random(0)
    for number, name in enumerate(names):
        store = CheckpointStore(tmp_path / str(number))
        copy = Path(shutil.copytree(checkpoint, store.folder / checkpoint.name)) / name
        content = bytearray(copy.read_bytes())
        damage = rng.choice(["flip", "truncate", "delete"])
        if damage == "delete":
            copy.unlink()
        elif damage == "truncate":
            copy.write_bytes(content[: len(content) // 2])
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            copy.write_bytes(content)
        problems = check(store.folder / checkpoint.name)
        assert problems, (damage, name)
        assert any(Path(name).name in problem for problem in problems) or "manifest" in name, (damage, name)


@pytest.fixture(scope="module")
def twice_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints after two and four."""
    folder = tmp_path_factory.mktemp("runs") / "twice_saved"
    settings = ["parallel.tensor=1", "checkpoint.every=2", "trainer.steps=4", "trainer.tensorboard=true"]
    outcome = megatron_entropic("train", "quickstart", *BASE, *settings, f"run.dir={folder}")
    assert outcome.code == 0, outcome.output
    return folder


def truncate_a_shard(checkpoint: Path) -> str:
    shard = next((checkpoint / "policy").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    return shard.name


def test_a_damaged_checkpoint_is_fallen_back_from_only_when_told_to(twice_saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twice_saved, tmp_path / "run"))
    damaged, whole = folder / "checkpoints/step-000004", folder / "checkpoints/step-000002"
    shard = truncate_a_shard(damaged)
    (damaged / "hf/config.json").unlink()
    before = without_times(folder)

    output = resume(folder)
    assert f"{damaged}: hf/config.json is missing" in output
    assert re.search(rf"{damaged}: policy/{shard} has \d+ bytes instead of \d+", output)
    assert f"{whole} is intact: pass --allow-fallback to resume from it; steps 3 to 4 are trained again" in output
    assert without_times(folder) == before, "a refused resume must not touch anything"
    assert "nothing is lost" not in output, "it would be refused again"
    assert "steps done" not in output, "what was trained is not this start's"
    assert store_of(folder).latest() == "step-000004"

    outcome = megatron_entropic("train", str(folder), "--resume", "--allow-fallback")
    assert outcome.code == 0, outcome.output
    assert "WARNING: the latest checkpoint is damaged" in outcome.output
    assert "steps 3 to 4 are lost and trained again" in outcome.output
    assert without_times(folder) == before
    assert store_of(folder).latest() == "step-000004"
    assert not check(damaged), "the damaged one was replaced"


def test_without_any_whole_checkpoint_all_damage_is_listed(twice_saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twice_saved, tmp_path / "run"))
    for step in (2, 4):
        truncate_a_shard(folder / f"checkpoints/step-00000{step}")
    output = resume(folder, "--allow-fallback")
    assert "there is no intact one before it" in output
    assert "step-000002: policy/" in output
    assert "step-000004: policy/" in output


def test_a_damaged_latest_is_no_reason_to_guess(twice_saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twice_saved, tmp_path / "run"))
    (folder / "checkpoints/latest").write_bytes(b"step-0000\xff4")
    output = resume(folder)
    assert "checkpoints/latest: names" in output
    assert "step-000004 is intact: pass --allow-fallback" in output


def test_trackers_go_on_under_the_names_they_had(twice_saved: Path) -> None:
    state = json.loads((twice_saved / "checkpoints/step-000004/state.json").read_text())
    assert state["trackers"] == {"tensorboard": "logs/tensorboard"}
    assert list((twice_saved / "logs/tensorboard").glob("events*"))


def store_of(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints")


def test_settings_that_may_change_are_shown_as_a_difference(twice_saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twice_saved, tmp_path / "run"))
    outcome = megatron_entropic("train", str(folder), "--resume", "optimizer.lr=1e-5", "trainer.steps=5")
    assert outcome.code == 0, outcome.output
    assert "- optimizer.lr: 0.0002\n  + optimizer.lr: 1e-05\n  - trainer.steps: 4\n  + trainer.steps: 5" in outcome.output


def test_settings_that_do_not_fit_are_refused(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    output = resume(folder, "batch.prompts_per_step=4", "control.kind=none")
    assert "- batch.prompts_per_step: 8\n  + batch.prompts_per_step: 4" in output
    assert "control.kind" in output
    assert load_config(folder / "config.yaml").batch.prompts_per_step == 8, "the next resume would be refused as well"


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    assert "no run to resume" in resume(tmp_path / "nothing")


def test_old_checkpoints_go_and_a_torn_one_is_never_latest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (2, 4, 6):
        partial = store.begin(step, {"step": step}, {"config.json": b"{}"})
        (partial / "policy" / "weights").write_bytes(b"w" * step)
        store.publish(partial, {}, keep=2)
    store.begin(8, {}, {})  # killed while writing
    assert store.names() == ["step-000004", "step-000006"]
    assert store.latest() == "step-000006"
    assert store.state("step-000006") == {"step": 6}
    store.begin(8, {}, {})
    assert [path.name for path in tmp_path.glob(".step-*")] == [".step-000008.0.partial"]


def test_what_a_fallback_left_behind_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (2, 4, 8, 5):
        store.publish(store.begin(step, {"step": step}, {}), {}, keep=2)
    assert store.names() == ["step-000004", "step-000005", "step-000008"]
    assert store.latest() == "step-000005"
    assert store.before("step-000005") == ["step-000004"]


def test_a_flipped_bit_in_latest_is_not_another_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (4, 6):
        store.publish(store.begin(step, {"step": step}, {}), {}, keep=2)
    latest = tmp_path / "latest"
    latest.write_text(latest.read_text().replace("step-000006", "step-000004"))
    with pytest.raises(RuntimeError, match=r"latest and .*step-000004/manifest.json do not belong together"):
        store.latest()
    latest.unlink()
    assert store.latest() == "step-000006", "a kill between the two renames"


def test_a_file_that_a_rank_wrote_elsewhere_is_missed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(RuntimeError, match=r"__8_0\.distcp: written by a rank, not found here"):
        store.publish(store.begin(4, {}, {}), {"__8_0.distcp": {"bytes": 10, "sha256": "ab"}}, keep=2)


def test_a_finished_run_can_be_resumed_and_goes_on_when_given_more_steps(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = (*BASE, "parallel.tensor=1", "trainer.export_hf=true", f"run.dir={folder}")
    assert megatron_entropic("train", "quickstart", *settings, "trainer.steps=2").code == 0
    weights = (folder / "hf" / "model.safetensors").read_bytes()
    again = megatron_entropic("train", str(folder), "--resume")
    assert again.code == 0, again.output
    assert (folder / "hf" / "model.safetensors").read_bytes() == weights
    more = megatron_entropic("train", str(folder), "trainer.steps=3", "--resume")
    assert more.code == 0, more.output
    assert [line["step"] for line in without_times(folder)] == [0, 1, 2]
    assert (folder / "hf" / "model.safetensors").read_bytes() != weights
