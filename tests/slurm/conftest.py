"""One emulated cluster for all tests of the session; skipped, with the reason, where it cannot be made."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import HERE, Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three idle nodes. Needs root, Debian's packages and the right to make namespaces."""
    if os.geteuid() != 0:
        pytest.skip("an emulated cluster needs root: it makes network and process namespaces")
    installed = subprocess.run([HERE / "install.sh"], capture_output=True, text=True, timeout=300, check=False)
    if installed.returncode:
        pytest.skip(f"tests/slurm/install.sh failed: {installed.stderr.strip()[-300:]}")
    allowed = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"no namespaces can be made here: {allowed.stderr.strip()}")
    with Cluster(tmp_path_factory.mktemp("cluster"), nodes=3) as made:
        yield made


@pytest.fixture
def idle(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with nothing running on it, before the test and after it."""
    cluster.wait(cluster.idle, 60, "the cluster did not become idle")
    yield cluster
    subprocess.run(["scancel", "--user=root"], env=cluster.environ, check=False)


@pytest.fixture(scope="session")
def replayable(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained on the cluster with a real server; see jobs.py."""
    from tests.slurm.jobs import REAL_RUN, job

    folder = tmp_path_factory.mktemp("jobs")
    finished = job(cluster, folder, "train.sbatch", "--nodes=3", *REAL_RUN, f"run.dir={folder / 'run'}").wait(240)
    assert finished.state == "COMPLETED", finished.output
    assert not finished.processes()
    return folder / "run"
