"""Real vLLM servers that start in a second or two: forked from one process that has imported vLLM, which takes 10 s of a core.

Within `forked_servers`, VLLMServer runs `stand_in` where it means to run Python. A stand-in hands its command line,
environment and standard streams to the process that forks, and lives as long as the server.
"""

import contextlib
import fcntl
import importlib
import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_IMPORTED = (
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
)
# What vLLM's libraries read while they are imported; as rollout/vllm/command_line.py sets it.
_ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextlib.contextmanager
def forked_servers() -> Iterator[None]:
    """Servers launched within are forked, and so are their engines and tensor-parallel ranks."""
    with tempfile.TemporaryDirectory() as folder:
        address, stand_in = f"{folder}/forks", Path(folder) / "python"
        stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" stand_in "{address}" "$@"\n')
        stand_in.chmod(0o700)
        environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, "fork_servers", address]
        python = sys.executable
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as forking:
            assert forking.stdin
            assert forking.stdout
            assert forking.stdout.readline() == b"ready\n"
            sys.executable = str(stand_in)
            try:
                yield
            finally:
                sys.executable = python
                forking.stdin.close()


def fork_servers(address: str) -> None:
    """Forks a server for every stand-in that connects to `address`, until the end of standard input."""
    for module in _IMPORTED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: stand-ins see them end
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection = listener.accept()[0]
            message, received, _, _ = socket.recv_fds(connection, 2**20, 16)
            server = os.fork()
            if server == 0:
                listener.close()
                _be_server(**json.loads(message), received=[*received, connection.detach()])
            connection.sendall(f"{server}\n".encode())
            connection.close()
            for descriptor in received:
                os.close(descriptor)


def _be_server(arguments: list[str], environment: Mapping[str, str], descriptors: list[int], received: list[int]) -> None:
    """Becomes the program that `python ARGUMENTS` is, with what it `received` under the numbers `descriptors`.

    The last one received, the connection, stays open: by its end the stand-in knows its own.
    """
    from vllm.v1.executor import multiproc_executor

    from megatron_entropic.rollout.vllm import server_main

    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out_of_the_way = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in received]
    for target, source in zip(descriptors, out_of_the_way, strict=False):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(environment, **{server_main.FORK_ENGINE: "1"})
    assert arguments[:2] == ["-m", server_main.__name__]
    sys.argv = arguments[1:]
    server_main.main()
    sys.exit(0)


def stand_in(address: str, *arguments: str) -> None:
    """Has a server forked that takes all of this process's descriptors, and ends when the last of its processes has ended."""
    descriptors = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = {"arguments": arguments, "environment": dict(os.environ), "descriptors": descriptors}
        socket.send_fds(connection, [json.dumps(request).encode()], descriptors)
        server = int(connection.makefile().readline())
        signal.signal(signal.SIGTERM, lambda number, _: os.kill(server, number))
        while connection.recv(1):
            pass


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    {"fork_servers": fork_servers, "stand_in": stand_in}[role](*words)
