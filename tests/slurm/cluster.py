"""An emulated SLURM cluster on this machine: real slurmctld, slurmd and munged; a node is a set of Linux namespaces.

Every node has a host name, an address on a bridge, a process table and a private folder of its own, so that a node can lose
its power, its disk, a port or a file without the others noticing. No file of the system is touched and no service started.
"""

import ctypes
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
_PR_SET_PDEATHSIG = 1
CPUS, MEMORY_MB, GPUS = 8, 24000, 4


class ClusterError(RuntimeError):
    """The emulated cluster did not do what was asked; the message holds the daemons' last words."""


class Cluster:
    """`nodes` emulated nodes n1, n2, ... and a controller; everything it writes lies under `folder`. A context manager.

    Its daemons are children of this process and end with it, however it ends.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.nodes = [f"n{number + 1}" for number in range(nodes)]
        self._tag = f"{os.getpid():x}"
        self._subnet = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environ(self) -> dict[str, str]:
        """Environment in which SLURM's commands find this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        try:
            _remove_leftovers()
            self._write_files()
            self._make_network()
            self._start_daemons()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def address(self, node: str) -> str:
        return f"{self._subnet}.{11 + self.nodes.index(node)}"

    def slurm(self, *command: str, timeout: float = 30.0) -> str:
        """Output of one of SLURM's commands. Raises ClusterError when it fails."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def on_node(self, node: str, *command: str) -> str:
        """Output of a command run inside the node's namespaces, as root. Raises ClusterError when it fails."""
        return self.slurm("nsenter", "--target", str(self._first_process(node)), "--mount", "--net", "--uts", "--pid", *command)

    def private(self, node: str) -> Path:
        """The folder that `node` sees as `local`."""
        return self.folder / f"private-{node}"

    @property
    def local(self) -> Path:
        """A path that leads to another folder on every node."""
        return self.folder / "local"

    def job(self, job_id: str) -> dict[str, str]:
        """Fields of `scontrol show job`."""
        fields = self.slurm("scontrol", "show", "job", "-o", job_id).splitlines()[0].split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait_for_job(self, job_id: str, *states: str, timeout: float) -> dict[str, str]:
        """The job's fields once it is in one of `states`, by default one that it never leaves. Raises ClusterError."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda: self.job(job_id)["JobState"] in wanted, timeout, f"job {job_id} did not become {' or '.join(wanted)}")
        return self.job(job_id)

    def wait(self, condition: Callable[[], bool], timeout: float, problem: str) -> None:
        """Returns once `condition` holds. Raises ClusterError with what the queue and the daemons say."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise ClusterError(f"{problem} within {timeout:g} s\n{self.describe()}")
            time.sleep(0.3)

    def describe(self) -> str:
        """The queue, the nodes, and the ends of the daemons' logs."""
        texts = []
        for command in (["squeue", "-a"], ["sinfo", "-N"]):
            done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=30, check=False)
            texts.append(done.stdout + done.stderr)
        for log in sorted((self.folder / "log").glob("*")):
            texts.append(f"{log.name}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-8:]))
        return "\n".join(texts)

    def idle(self) -> bool:
        """Whether every node is up and free."""
        states = self.slurm("sinfo", "-h", "-N", "-o", "%N %t").split("\n")
        return sorted(line for line in states if line) == sorted(f"{node} idle" for node in self.nodes)

    def stop(self) -> None:
        """Ends every daemon and node by its process id, and removes the network. Safe to call twice."""
        for process in self._daemons.values():
            process.send_signal(signal.SIGKILL if process.args[0] == "ip" else signal.SIGTERM)  # type: ignore[index]
        for process in self._daemons.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._daemons.clear()
        for node in self.nodes:
            _quietly("ip", "netns", "del", self._namespace(node))
        _quietly("ip", "link", "del", f"me{self._tag}")

    def _namespace(self, node: str) -> str:
        return f"me{self._tag}-{node}"

    def _first_process(self, node: str) -> int:
        """Process id, seen from here, of the node's first process."""
        children = Path(f"/proc/{self._daemons[node].pid}/task/{self._daemons[node].pid}/children").read_text().split()
        return int(children[0])

    def _write_files(self) -> None:
        for name in ("log", "ctld", "dev", "munge", "local", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        for node in self.nodes:
            self.private(node).mkdir()
        (self.folder / "munge").chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for number in range(GPUS):
            os.mknod(self.folder / "dev" / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # /dev/null by another name
        hosts = [f"{self.address(node)} {node}" for node in self.nodes]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{self._subnet}.1 controller", *hosts]) + "\n")
        nodes = [
            f"NodeName={node} NodeAddr={self.address(node)} CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{GPUS} State=UNKNOWN"
            for node in self.nodes
        ]
        template = (
            (HERE / "slurm.conf").read_text().format(folder=self.folder, host=socket.gethostname(), controller=f"{self._subnet}.1")
        )
        (self.folder / "slurm.conf").write_text("\n".join([template, *nodes]) + "\n")
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/dev/gpu[0-{GPUS - 1}]\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\n")

    def _make_network(self) -> None:
        bridge = f"me{self._tag}"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self._subnet}.1/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for number, node in enumerate(self.nodes):
            space, outside = self._namespace(node), f"me{self._tag}{number}"
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", outside, "master", bridge, "up")
            _run("ip", "-n", space, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")

    def _start_daemons(self) -> None:
        munge = self.folder / "munge"
        files = [f"--{what}={munge / name}" for what, name in {"socket": "socket", "key-file": "key", "pid-file": "pid"}.items()]
        files += [f"--{what}={munge / name}" for what, name in {"log-file": "log", "seed-file": "seed"}.items()]
        self._start("munged", ["munged", "--foreground", "--force", *files])
        self.wait((munge / "socket").exists, 20, "munged did not open its socket")
        self._start("slurmctld", ["slurmctld", "-D", "-c", "-f", str(self.folder / "slurm.conf")])
        for node in self.nodes:
            self._start_node(node)
        self.wait(lambda: self._answers() and self.idle(), 60, "the nodes did not come up")

    def _start_node(self, node: str) -> None:
        apart = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["ip", "netns", "exec", self._namespace(node), *apart, str(HERE / "node.sh"), node, str(self.folder)]
        self._start(node, command)

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / "log" / f"{name}.out").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )

    def _answers(self) -> bool:
        return subprocess.run(["scontrol", "ping"], env=self.environ, capture_output=True, check=False, timeout=30).returncode == 0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _remove_leftovers() -> None:
    """Removes networks of clusters whose process was killed before it could; their daemons and nodes ended with it."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for namespace, owner in re.findall(r"^(me([0-9a-f]+)-n\d+)", listed, flags=re.MULTILINE):
        if not Path(f"/proc/{int(owner, 16)}").exists():
            _quietly("ip", "netns", "del", namespace)
            _quietly("ip", "link", "del", f"me{owner}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")


def _quietly(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=False)
