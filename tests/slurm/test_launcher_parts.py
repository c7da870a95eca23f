"""Functions of the launcher, without a cluster."""

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.config.loading import load_config, save_config
from megatron_entropic.observability.history import record_end, record_start
from slurm import allocation
from slurm.allocation import Allocation, ClusterError, Group, counts, read_allocation
from slurm.containers import Container
from slurm.describe import describe
from slurm.launch import parser
from slurm.logs import merged
from slurm.split import Description, split_nodes
from slurm.steps import Step, StepRequest, srun_command
from slurm.submit import command, make_output_folder
from slurm.verdict import NodeLimits, judge_all_reduce, judge_facts
from tests.command_line import ROOT

NODES = ("n1", "n2", "n3")
LAUNCHER = sorted(path for path in (ROOT / "slurm").glob("*.py") if path.name not in ("describe.py", "sweep.py"))


def described(**changes: object) -> Description:
    values: dict[str, object] = {
        "run_dir": "runs/r",
        "has_run": False,
        "overrides": [],
        "world_size": 16,
        "uses_servers": True,
        "servers": 2,
    }
    return Description(**{**values, "server_gpus": 4, "model": "m", "run_dir_bytes": 1, **changes})  # type: ignore[arg-type]


def nodes(count: int, gpus: int = 8, het_group: int | None = None) -> Group:
    return Group(tuple(f"n{number + 1}" for number in range(count)), 32, gpus, het_group)


def given(*groups: Group) -> Allocation:
    return Allocation("7", 0, None, groups)


# Splitting


def test_the_first_nodes_train_and_the_others_serve() -> None:
    split = split_nodes(given(nodes(3)), described(), None)
    assert (split.trainer.nodes, split.ranks_per_node) == (("n1", "n2"), 8)
    assert split.fleet is not None
    assert split.fleet.nodes == ("n3",)
    assert [split.node_of_rank(rank) for rank in (0, 7, 8, 15)] == ["n1", "n1", "n2", "n2"]


def test_without_other_nodes_servers_run_beside_rank_0() -> None:
    split = split_nodes(given(nodes(1)), described(world_size=4, servers=1), 4)
    assert (split.trainer.nodes, split.fleet) == (("n1",), None)


def test_a_het_jobs_second_component_serves() -> None:
    fleet = Group(("m1", "m2"), 16, 4, 1)
    split = split_nodes(given(nodes(2, het_group=0), fleet), described(), None)
    assert (split.trainer.nodes, split.fleet) == (("n1", "n2"), fleet)


@pytest.mark.parametrize(
    ("allocated", "changes", "asked", "message"),
    [
        ((nodes(2),), {"world_size": 12}, None, "12 ranks, which do not fill nodes of 8"),
        ((nodes(1),), {}, None, "16 ranks of 8 a node need 2 nodes; the job has 1: sbatch --nodes"),
        ((nodes(3),), {"servers": 3}, None, "need 12 GPUs a node on 1 nodes of the fleet, which have 8"),
        ((nodes(4),), {"servers": 1}, None, r"rollout\.servers=1 on 2 nodes"),
        ((nodes(3),), {"shares_gpus": True}, None, r"share_gpu=true has the servers on the ranks' GPUs, so 1 nodes would idle: n3"),
        ((nodes(3),), {"uses_servers": False}, None, "1 nodes would idle: n3"),
        ((nodes(3, gpus=0),), {}, None, "--ranks-per-node"),
        ((nodes(1, het_group=0), nodes(1, het_group=1)), {}, None, "the trainer's component has 1 nodes"),
    ],
)
def test_an_allocation_that_does_not_fit_is_refused(
    allocated: tuple[Group, ...], changes: dict[str, object], asked: int | None, message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        split_nodes(given(*allocated), described(**changes), asked)


# Reading SLURM's environment


def test_slurms_counts_are_expanded() -> None:
    assert counts("8(x2),4") == [8, 8, 4]


def test_both_components_of_a_het_job_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "expand", lambda nodelist: tuple(nodelist.split("+")))
    environ = {
        "SLURM_JOB_ID": "4",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_HET_SIZE": "2",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_JOB_NODELIST_HET_GROUP_0": "n1+n2",
        "SLURM_JOB_NODELIST_HET_GROUP_1": "m1",
        "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_0": "64(x2)",
        "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1": "16",
        "SLURM_GPUS_PER_NODE_HET_GROUP_0": "h100:8",
        "SLURM_GPUS_PER_NODE_HET_GROUP_1": "4",
    }
    found = read_allocation(environ)
    assert (found.start, found.task_id, found.nodes) == (2, 5, ("n1", "n2", "m1"))
    assert found.groups == (Group(("n1", "n2"), 64, 8, 0), Group(("m1",), 16, 4, 1))


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({}, 0),
        ({"GPUS_PER_NODE": "8"}, 8),
        ({"GPUS_PER_NODE": "h100:8", "GPUS_ON_NODE": "4"}, 8),
        ({"GPUS_ON_NODE": "4"}, 4),
        ({"GPUS_PER_TASK": "1", "TASKS_PER_NODE": "8(x2)"}, 8),
        ({"GPUS_PER_TASK": "8", "TASKS_PER_NODE": "1(x2)"}, 8),
        ({"GPUS_PER_TASK": "h100:2", "TASKS_PER_NODE": "4(x2)"}, 8),
        ({"TRES_PER_TASK": "cpu=8,gres/gpu=1", "TASKS_PER_NODE": "4(x2)"}, 4),
        ({"TRES_PER_TASK": "cpu=8,gres/gpu:h100=2", "TASKS_PER_NODE": "4(x2)"}, 8),
        ({"TRES_PER_TASK": "gres/gpu:1", "TASKS_PER_NODE": "4(x2)"}, 4),
        ({"TRES_PER_TASK": "cpu=8", "TASKS_PER_NODE": "4(x2)"}, 0),
        ({"GPUS": "16"}, 8),
    ],
)
def test_gpus_of_a_node_are_counted_however_they_were_asked_for(
    environ: dict[str, str], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "expand", lambda nodelist: ("n1", "n2"))
    job = {"JOB_ID": "4", "JOB_NODELIST": "n[1-2]", **environ}
    assert read_allocation({f"SLURM_{name}": value for name, value in job.items()}).groups[0].gpus_per_node == gpus


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SLURM_GPUS_PER_NODE", "1g.10gb:4"),
        ("SLURM_GPUS_PER_NODE", "a100_3g.20gb:2"),
        ("SLURM_GPUS_PER_TASK", "nvidia_a100_1g.5gb:1"),
        ("SLURM_TRES_PER_TASK", "cpu=1,gres/gpu:1g.10gb=1"),
        ("SLURM_GPUS", "1g.10gb:4"),
        ("CUDA_VISIBLE_DEVICES", "MIG-9e2d3a6b-1111"),
    ],
)
def test_slices_of_gpus_are_refused(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "expand", lambda nodelist: (nodelist,))
    with pytest.raises(ClusterError, match=f"^{variable}={value}: slices of GPUs .MIG.*ask for whole GPUs"):
        read_allocation({"SLURM_JOB_ID": "4", "SLURM_JOB_NODELIST": "n1", variable: value})


def test_outside_a_job_the_launcher_says_what_to_do() -> None:
    with pytest.raises(ClusterError, match=r"slurm/train\.sbatch"):
        read_allocation({})


# Command lines


def test_a_step_says_everything_to_srun_and_binds_cores() -> None:
    request = StepRequest([nodes(2)], 4, ["python", "x"], bind_cpus=True)
    words = srun_command(request, Container("none", "", (), gpus=True))
    assert {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--nodelist=n1,n2", "--cpus-per-task=8", "--cpu-bind=cores"} <= set(words)
    assert words[-2:] == ["python", "x"]
    het = srun_command(StepRequest([nodes(1, het_group=0), nodes(1, het_group=1)], 1, ["x"]), Container("none", "", (), gpus=True))
    assert "--het-group=0,1" in het
    assert not any(word.startswith(("--nodelist", "--nodes")) for word in het)


def test_every_task_of_a_step_sees_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever sbatch was told: it would be srun's default, and each rank would see one GPU, the servers none."""
    container = Container("none", "", (), gpus=True)
    for name in ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("slurm.steps.srun_command", lambda request, container: ["env"])
    said: list[str] = []
    step = Step(StepRequest([nodes(1)], 1, ["x"], {"MASTER_ADDR": "n1"}), container, lambda task, line: said.append(line))
    assert step.wait(10) == 0
    assert "MASTER_ADDR=n1" in said
    assert not [line for line in said if line.startswith(("SLURM_GPU", "SLURM_TRES", "SLURM_NTASKS_PER_GPU"))]


def test_containers_see_the_folder_of_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)  # a checkout on it is mounted too
    monkeypatch.chdir(tmp_path)
    request = StepRequest([nodes(1)], 1, ["python3", "-m", "x"])
    pyxis = srun_command(request, Container("pyxis", "a.sqsh", ("/data", "/scratch:/tmp"), gpus=True))
    assert f"--container-mounts={tmp_path}:{tmp_path},/data:/data,/scratch:/tmp" in pyxis
    assert {"--container-image=a.sqsh", f"--container-workdir={tmp_path}"} <= set(pyxis)
    apptainer = srun_command(request, Container("apptainer", "a.sif", ("/data",), gpus=True))
    start = apptainer.index("apptainer")
    assert apptainer[start:] == [
        *["apptainer", "exec", "--nv", "--bind", str(tmp_path), "--bind", "/data"],
        *["--pwd", str(tmp_path), "a.sif", "python3", "-m", "x"],
    ]


def test_submit_builds_the_sbatch_line() -> None:
    slurm = ["--nodes=2", "--partition", "gpu", "--qos=high", "--account=a", "--reservation=r", "--constraint=h100", "--time=1:00:00"]
    words, dry_run = command(["train", "quickstart", *slurm, "trainer.steps=5", "--ranks-per-node=4", "--dry-run"])
    assert dry_run
    script = words.index(str(ROOT / "slurm" / "train.sbatch"))
    assert set(words[1:script]) == {f"--{flag}" for flag in ("nodes=2", "partition=gpu", "qos=high", "account=a", "reservation=r")} | {
        "--constraint=h100",
        "--time=1:00:00",
    }
    assert words[script + 1 :] == ["quickstart", "trainer.steps=5", "--ranks-per-node=4"]
    words, _ = command(["train", "r", "--nodes=2", "--fleet-nodes=1", "--fleet-constraint=l40s"])
    assert words == ["sbatch", "--nodes=2", ":", "--constraint=l40s", "--nodes=1", str(ROOT / "slurm" / "train_het.sbatch"), "r"]


def test_a_sweep_by_commas_is_a_job_array_of_what_is_to_do(tmp_path: Path) -> None:
    given = ["train", "quickstart", f"run.dir={tmp_path}", "--nodes=2", "--sweep", "control.target_entropy=0.7,0.9", "trainer.seed=0,1"]
    words, _ = command(given)
    sweep = tmp_path / "sweep.txt"
    script = words.index(str(ROOT / "slurm" / "train.sbatch"))
    assert (words[1:script], words[script + 1 :]) == (["--nodes=2", "--array=0,1,2,3"], ["quickstart", f"--sweep={sweep}"])
    described = describe("quickstart", [], sweep, 2)
    assert described.run_dir == str(tmp_path / "target_entropy=0.9,seed=0")
    done = tmp_path / "target_entropy=0.7,seed=1"
    save_config(
        load_config("quickstart", described.overrides[:-4] + shlex.split(sweep.read_text().splitlines()[1])), done / "config.yaml"
    )
    record_start(done, [])
    record_end(done, 0)
    (done / "metrics.jsonl").write_text('{"step": 0}\n' * 60)
    assert "--array=0,2,3" in command(given)[0]
    with pytest.raises(SystemExit):
        command([*given, "--array=0-1"])
    assert "--sweep=own.txt" in command(["train", "r", "--sweep=own.txt", "--array=0-7"])[0]


def test_submit_makes_the_folder_of_the_output(tmp_path: Path) -> None:
    words, _ = command(["train", "r", f"--output={tmp_path}/logs/%j.out"])
    make_output_folder(words)
    make_output_folder([f"--output={tmp_path}/%j/out"])
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_every_option_has_its_line_of_help() -> None:
    for job in ("train", "convert"):
        sub = parser()._subparsers._group_actions[0].choices[job]  # type: ignore[union-attr,index]
        assert all(action.help for action in sub._actions), job
    for module in ("slurm.launch", "slurm.submit"):
        shown = subprocess.run([sys.executable, "-m", module, "train", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "--ranks-per-node" in shown.stdout


# Verdicts


def node_facts(**changes: object) -> dict[str, object]:
    space = {kind: {"path": f"/{kind}", "free": 10**9} for kind in ("run_dir", "tmp")}
    return {"problems": [], "disk": space, "same": {"torch": "2.13"}, **changes}


def reaching(node: str, **failures: str) -> dict[str, object]:
    return {"reached": {peer: failures.get(peer) for peer in NODES if peer != node}, "clock": dict.fromkeys(NODES, 0.0)}


def judged(facts: dict[str, dict[str, object]], words: tuple[str, ...] = ()) -> list[str]:
    return judge_facts(NODES, facts, NodeLimits(10**6, 10**6, 5.0), words)


def test_equal_nodes_have_no_problem() -> None:
    assert judged({node: {**node_facts(), **reaching(node)} for node in NODES}) == []


def test_the_odd_one_out_is_named() -> None:
    facts = {node: {**node_facts(), **reaching(node)} for node in NODES}
    facts["n1"]["same"] = {"torch": "2.12"}
    assert judged(facts) == ["n1: torch is 2.12, but 2.13 on n2, n3"]


def test_a_node_cut_off_both_ways_is_named_once() -> None:
    facts = {node: {**node_facts(), **reaching(node)} for node in NODES}
    facts["n1"].update(reaching("n1", n2="timed out"))
    facts["n3"].update(reaching("n3", n2="timed out"))
    facts["n2"].update(reaching("n2", n1="timed out", n3="timed out"))
    assert judged(facts) == ["n2: cannot be reached from n1, n3 and cannot reach n1, n3: timed out"]


def test_a_wrong_clock_is_named() -> None:
    facts = {node: {**node_facts(), **reaching(node), "clock": {"n1": 0.0, "n2": 0.1, "n3": -61.0}} for node in NODES}
    assert judged(facts) == ["n3: its clock is -61.0 s off the other nodes'"]


def test_a_silent_node_is_named_with_its_last_words() -> None:
    facts = {node: {**node_facts(), **reaching(node, n3="refused")} for node in ("n1", "n2")}
    said = judged(facts, ("2: No module named megatron_entropic", "srun: error: n3: task 2: Exited with exit code 1"))
    assert said == [
        "n3: did not report: 2: No module named megatron_entropic | srun: error: n3: task 2: Exited with exit code 1",
    ]


def test_the_rank_that_does_not_meet_the_others_is_named() -> None:
    results = {0: {"joined": False, "backend": "nccl", "error": "timeout"}, 1: {"joined": True, "backend": "nccl"}}
    assert judge_all_reduce(["n1", "n2"], {1: {"joined": True, "backend": "gloo"}}, []) == ["n1: rank 0 did not report (no output)"]
    assert judge_all_reduce(["n1", "n2"], results, []) == ["n1: rank 0 did not complete an all-reduce over nccl: timeout"]


# Logs


def test_logs_are_merged_by_time_under_their_speakers_names(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "rank-0.log").write_text(
        "2026-01-02 10:00:00,100 INFO a: first\n2026-01-02 10:00:03,000 INFO a: fourth\n  fourth goes on\n"
    )
    (logs / "rank-1.log").write_text("2026-01-02 10:00:02,000 INFO a: third\n")
    (logs / "vllm_0.log").write_text("(APIServer pid=3) INFO 01-02 10:00:01 [x.py:1] second\n")
    assert [(speaker, line.split(": ")[-1].split("] ")[-1]) for speaker, line in merged(tmp_path)] == [
        ("rank 0", "first"),
        ("server 0", "second"),
        ("rank 1", "third"),
        ("rank 0", "fourth"),
        ("rank 0", "  fourth goes on"),
    ]


# What it may be made of


def test_the_launcher_needs_no_more_than_python_3_9() -> None:
    """It runs on the batch host, where there may be no more than the system's Python."""
    for path in LAUNCHER:
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        foreign = {name for name in imported if name and name.split(".")[0] not in sys.stdlib_module_names | {"slurm"}}
        assert not foreign, path


def test_jobs_run_in_the_environment_for_gpus_where_it_was_made(tmp_path: Path) -> None:
    for made in (".venv", ".venv-gpu"):
        python = tmp_path / made / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch(mode=0o755)

    def chosen(**environ: str) -> str:
        script = f'root={tmp_path}; source {ROOT / "slurm" / "environment.sh"}; echo "$python"'
        return subprocess.run(
            ["bash", "-euc", script], env={"PATH": "/bin", **environ}, text=True, capture_output=True, check=True
        ).stdout

    assert chosen() == f"{tmp_path}/.venv/bin/python\n", "the other is not finished"
    (tmp_path / ".venv-gpu" / ".installed").touch()
    assert chosen() == f"{tmp_path}/.venv-gpu/bin/python\n"
    assert chosen(ENTROPIC_PYTHON="/bin/true") == "/bin/true\n"


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
def test_scripts_pass_shellcheck() -> None:
    scripts = [*(ROOT / "slurm").glob("*.sbatch"), *(ROOT / "slurm").glob("*.sh"), *(ROOT / "tests" / "slurm").glob("*.sh")]
    done = subprocess.run(["shellcheck", "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert len(scripts) == 6
