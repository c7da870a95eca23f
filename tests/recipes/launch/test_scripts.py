"""Jobs as --dryrun prints them, and settings that are refused before submission."""

import re
from pathlib import Path

import pytest

from recipes.launch import main, parser
from tests.command_line import ROOT
from tests.recipes.launch.environment import launch


def flags(script: str) -> list[str]:
    """The #SBATCH lines, but for names and folders."""
    lines = re.findall(r"^#SBATCH (?:--)?(.*)$", script, flags=re.MULTILINE)
    return sorted(line for line in lines if not line.startswith(("job-name", "output", "chdir")))


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "script"), [("slurm", "train.sbatch"), ("slurm-het", "train_het.sbatch")])
def test_the_job_is_the_sbatch_files_own(tmp_path: Path, executor: str, script: str) -> None:
    done = launch("quickstart", "trainer.steps=5", "--executor", executor, "--ranks-per-node=2", "--dryrun", home=tmp_path)
    assert done.returncode == 0, done.stderr
    plain = flags((ROOT / "slurm" / script).read_text())
    once = ["open-mode=append", "signal=B:USR1@300"]  # NeMo-Run repeats every flag for both components
    assert flags(done.stdout) == sorted(plain + (once if executor == "slurm-het" else []))
    assert f"exec bash {ROOT}/slurm/{script} quickstart trainer.steps=5 --ranks-per-node=2\n" in done.stdout
    assert f"#SBATCH --chdir={ROOT}\n" in done.stdout
    assert not list((tmp_path / "launch").rglob("*.sh"))


@pytest.mark.slow
def test_flags_reach_the_job(tmp_path: Path) -> None:
    slurm = {"account": "a", "partition": "p", "qos": "q", "reservation": "r", "constraint": "c", "time": "1:00:00", "nodes": "3"}
    slurm |= {"gpus-per-node": "8", "mem": "100G", "array": "0-3"}
    container = ["--container=pyxis", "--image=/images/a.sqsh", "--mount=/data", "--mount=/scratch:/tmp"]
    job = [f"--{name}={value}" for name, value in slurm.items()]
    ssh = ["--host=login", "--user=me", "--identity=key", "--root=/home/me/project"]
    done = launch("quickstart", *job, *container, *ssh, "--sbatch-arg=--comment=b", "--executor=slurm", "--dryrun", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {f"{name}={value}" for name, value in slurm.items()} | {"comment=b"} <= set(flags(done.stdout))
    assert "exec bash /home/me/project/slurm/train.sbatch quickstart " + " ".join(container) in done.stdout
    assert "#SBATCH --chdir=/home/me/project\n" in done.stdout
    assert re.search(r"^#SBATCH --output=/home/me/project/build/launch/experiments/quickstart/", done.stdout, flags=re.MULTILINE)


@pytest.mark.slow
def test_a_folder_that_nemo_run_would_rename_is_refused(tmp_path: Path) -> None:
    done = launch("quickstart", "--executor=slurm", "--dryrun", "--home", str(tmp_path / "nemo_run"), home=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "NeMo-Run replaces every '/nemo_run'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstart"], "nemo_run is not installed for .*: NeMo-Run has an environment of its own; run `make env-launch`"),
        (["--list"], "run `make env-launch`"),
        (["quickstart", "trainer.stepz=3"], r"unknown setting 'trainer\.stepz'; did you mean 'trainer\.steps'"),
        (["quickstarter"], "neither a file nor a recipe"),
        (["quickstart", "--nodes=3", "--preflight=off"], "not for --executor local: --nodes, --preflight=off"),
        (["quickstart", "--executor=slurm", "--overwrite"], "not for --executor slurm: --overwrite"),
        (["quickstart", "--executor=slurm", "--fleet-nodes=2"], "not for --executor slurm: --fleet-nodes"),
        (["quickstart", "--executor=slurm", "--user=me"], r"--user \(without --host\)"),
        (["quickstart", "--executor=slurm", "--container=pyxis"], "go together with --image"),
        (["my_recipe.py", "--executor=slurm", "--host=login", "--root=/r"], "with --host give a recipe's name"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the trainer's environment, where there is no NeMo-Run: so none of it can have been used."""
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path))  # main sets it
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1


def test_every_option_has_its_line_of_help() -> None:
    assert all(action.help for action in parser()._actions)
    assert "make env-launch" in parser().format_help()
