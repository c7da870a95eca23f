"""Faults injected into single nodes are found before training starts; one line names the node."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import job
from tests.tiny_models import TINY_DECOMPOSE

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
PORTS = "20000:21000"
"""Ports of the first jobs of a cluster: 20000 and the job's number."""


@pytest.fixture
def private(idle: Cluster) -> Iterator[Cluster]:
    """Every node's private folder holds the model and room for temporary files; emptied afterwards."""
    for node in idle.nodes:
        shutil.copytree(TINY_DECOMPOSE, idle.private(node) / "model")
        (idle.private(node) / "tmp").mkdir()
    yield idle
    for node in idle.nodes:
        for path in idle.private(node).iterdir():
            shutil.rmtree(path)


def refused(cluster: Cluster, tmp_path: Path, **environ: str) -> str:
    """The one line with which a job ends, whose nodes are not all fit; nothing was started on them."""
    run_dir = tmp_path / "run"
    settings = ["quickstart", "--ranks-per-node=2", "parallel.data=2", "rollout.servers=1", f"model.hf_path={cluster.local}/model"]
    options = ["--preflight=quick", "--preflight-timeout=24", "--min-tmp-gb=0.1", f"run.dir={run_dir}"]
    arguments = ["--nodes=3", *settings, *options]
    finished = job(cluster, tmp_path, "train.sbatch", *arguments, TMPDIR=f"{cluster.local}/tmp", **environ).wait(90)
    assert finished.state == "FAILED", finished.output
    assert not run_dir.exists()
    errors = [line for line in finished.output.splitlines() if "error: " in line]
    assert len(errors) == 1, finished.output
    return errors[0]


def test_nodes_without_a_fault_are_fit(private: Cluster, tmp_path: Path) -> None:
    """The same options as below: the faults alone make the difference."""
    settings = ["quickstart", "--ranks-per-node=1", "rollout.engine=local", "trainer.steps=0", f"model.hf_path={private.local}/model"]
    options = ["--preflight=full", "--min-tmp-gb=0.1", f"run.dir={tmp_path / 'run'}"]
    finished = job(private, tmp_path, "train.sbatch", "--nodes=2", *settings, *options, TMPDIR=f"{private.local}/tmp").wait(120)
    assert finished.state == "COMPLETED", finished.output
    assert re.search(r"preflight: 2 nodes are fit for the run \(\d+ s\)", finished.output)


def test_another_package_version(private: Cluster, tmp_path: Path) -> None:
    """A node whose environment was updated alone: metadata of another version comes first on its path."""
    package = private.private("n2") / "site" / "transformers-9.9.9.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.9.9\n")
    line = refused(private, tmp_path, PYTHONPATH=f"{private.local}/site")
    assert re.search(r"preflight: n2: transformers is 9\.9\.9, but [\d.]+ on n1, n3$", line), line


def test_an_unreachable_port(private: Cluster, tmp_path: Path) -> None:
    with rule(private, "n2", "INPUT", "-p", "tcp", "--dport", PORTS, "-j", "DROP"):
        line = refused(private, tmp_path)
    assert re.search(r"preflight: n2: cannot be reached from n1, n3: port 20\d+: timed out$", line), line


def test_a_full_disk(private: Cluster, tmp_path: Path) -> None:
    """A small file system of n2's own, at the path that all nodes use for temporary files."""
    place = f"{private.local}/tmp"
    private.on_node("n2", "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place)
    try:
        line = refused(private, tmp_path)
    finally:
        private.on_node("n2", "umount", place)
    assert re.search(rf"preflight: n2: disk full: {place} has 0\.00 GiB free, 0\.10 GiB are needed$", line), line


def test_a_missing_model_file(private: Cluster, tmp_path: Path) -> None:
    (private.private("n3") / "model" / "model.safetensors").unlink()
    line = refused(private, tmp_path)
    assert re.search(r"preflight: n3: model: .*model\.safetensors", line), line


@contextmanager
def rule(cluster: Cluster, node: str, *rule: str) -> Iterator[None]:
    """A rule of the node's own firewall."""
    cluster.on_node(node, "iptables", "-A", *rule)
    try:
        yield
    finally:
        cluster.on_node(node, "iptables", "-D", *rule)
