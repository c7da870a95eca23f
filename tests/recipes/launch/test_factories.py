"""Every recipe is a NeMo-Run factory, in an environment without the trainer's stack."""

import json
from pathlib import Path

import pytest

from megatron_entropic.config.loading import load_config, recipe_names
from tests.recipes.launch.environment import in_launch_environment

pytestmark = pytest.mark.slow

PROGRAM = """
import importlib.util, json, sys
import nemo_run as run
from nemo_run.config import get_type_namespace
from megatron_entropic.config.loading import ConfigError
from recipes.nemo.factories import factories, train, words_of

made = {name: factory() for name, factory in factories().items()}
changed = made["quickstart"]
changed.config.trainer.steps = 7
changed.config.optimizer.lr = 1e-7
changed.config.trainer.tensorboard = False
changed.config.run.dir = "a folder/run"
changed.config.rollout.server_args = ("--one", "two three")
changed.config.task.options = {"low": 10}
words = words_of(changed)
changed.config.trainer.steps = -1
try:
    words_of(changed)
except ConfigError as error:
    complaint = str(error)
print(json.dumps({
    "unchanged": {name: words_of(partial) for name, partial in made.items() if name != "quickstart"},
    "words": words,
    "complaint": complaint,
    "registered": sorted(factory.__name__ for factory in run.cli.list_factories(get_type_namespace(train))),
    "stack": [name for name in ("torch", "megatron", "vllm", "transformers") if name in sys.modules or importlib.util.find_spec(name)],
}))
"""


def test_every_recipe_is_a_factory_whose_changes_become_overrides(tmp_path: Path) -> None:
    done = in_launch_environment("-c", PROGRAM, home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["stack"] == []
    assert set(recipe_names()) - {"quickstart"} <= set(found["unchanged"])
    assert all(words == [name] for name, words in found["unchanged"].items())
    names = {"quickstart", *found["unchanged"]}
    assert found["registered"] == sorted(name.replace(":", "_") for name in names)
    overrides = ["trainer.steps=7", "optimizer.lr=1.0e-07", "trainer.tensorboard=false", "run.dir=a folder/run"]
    overrides += ["rollout.server_args=[--one, two three]", "task.options={low: 10}"]
    assert load_config(found["words"][0], found["words"][1:]) == load_config("quickstart", overrides)
    assert found["complaint"].startswith("quickstart: trainer.steps=-1: ")


def test_nemo_runs_own_command_line_shows_them_and_what_would_run(tmp_path: Path) -> None:
    shown = in_launch_environment("-m", "recipes.nemo", "--help", home=tmp_path, environ={"COLUMNS": "200"})
    assert all(name in shown.stdout for name in (*recipe_names(), "slurm", "local")), shown.stdout + shown.stderr
    command = ["--factory", "quickstart", "config.trainer.steps=2", "run.executor=slurm", "run.executor.nodes=3"]
    dry = in_launch_environment("-m", "recipes.nemo", *command, "--dryrun", "--yes", home=tmp_path)
    assert "#SBATCH --nodes=3" in dry.stdout, dry.stdout + dry.stderr
    assert "slurm/train.sbatch quickstart trainer.steps=2" in dry.stdout
    assert not (tmp_path / "user").exists()
