"""Ports, command lines, environments and logs of servers: everything that needs no running server."""

import contextlib
import glob
import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.config import RolloutConfig
from megatron_entropic.rollout.types import RolloutError
from megatron_entropic.rollout.vllm.client import log_tail
from megatron_entropic.rollout.vllm.command_line import server_cores, server_environment
from megatron_entropic.rollout.vllm.server import VLLMServer, open_listeners, without_patterns
from megatron_entropic.rollout.vllm.server_proof import CHALLENGE, PROOF, proof_of
from megatron_entropic.rollout.weight_sync.transports import weight_backend
from megatron_entropic.system.rendezvous import listen


def make_server(cfg: RolloutConfig, log_dir: Path) -> VLLMServer:
    return VLLMServer(
        cfg, 0, listener=listen("127.0.0.1"), model_dir=Path("m"), dtype="float32", max_model_len=64, seed=3, log_dir=log_dir
    )


def test_a_port_in_use_is_found_before_launching() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RolloutError, match=rf"rollout server 0 .*port {port}.*rollout\.base_port"):
            open_listeners(RolloutConfig(base_port=port))


def test_ports_are_different_and_nobody_else_can_have_them() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in open_listeners(RolloutConfig(servers=5))]
        ports = [listener.getsockname()[1] for listener in listeners]
        assert len(set(ports)) == 5
        stranger = stack.enter_context(socket.socket())
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", ports[0]))
    for listener in open_listeners(RolloutConfig(base_port=ports[0])):
        listener.close()


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(RolloutError, match=r"192\.0\.2\.77.*rollout\.host"):
        open_listeners(RolloutConfig(host="192.0.2.77"))


def test_the_key_is_random_and_never_on_the_command_line(tmp_path: Path) -> None:
    one, other = (make_server(RolloutConfig(), tmp_path) for _ in range(2))
    assert one.key != other.key
    assert len(one.key) >= 32
    assert one.environment["VLLM_API_KEY"] == one.key
    assert not any(one.key in argument for argument in one.arguments)


def test_arguments_of_the_user_come_last(tmp_path: Path) -> None:
    arguments = make_server(RolloutConfig(server_args=("--max-num-seqs", "7"), memory_gb=0.25), tmp_path).arguments
    assert arguments[-2:] == ["--max-num-seqs", "7"]
    assert arguments[arguments.index("--seed") + 1] == "3"
    assert arguments[arguments.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert arguments[arguments.index("--generation-config") + 1] == "vllm"


def test_a_server_does_not_take_its_owners_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TRITON_INTERPRET"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "yes")
    environment = server_environment(RolloutConfig(startup_timeout_s=1800.5), 0, "key")
    assert environment["VLLM_ENGINE_READY_TIMEOUT_S"] == "1801"
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TRITON_INTERPRET"} & set(
        environment
    )
    assert environment["KEPT"] == "yes"
    assert environment["PATH"] == os.environ["PATH"]


def test_a_server_does_not_take_what_a_rank_on_a_gpu_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection would have its communication wait for its computation; what the user says of the allocator is for all."""
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    for said, kept in (("expandable_segments:True", False), ("max_split_size_mb:512", True)):
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", said)
        environment = server_environment(RolloutConfig(), 0, "key")
        assert "CUDA_DEVICE_MAX_CONNECTIONS" not in environment
        assert ("PYTORCH_CUDA_ALLOC_CONF" in environment) == kept


@pytest.mark.parametrize(
    ("settings", "gpus", "backend", "fraction"),
    [
        ({}, "1", "entropic_nccl", "0.85"),
        ({"gpu_memory_utilization": 0.7}, "1", "entropic_nccl", "0.7"),
        ({"share_gpu": True}, "0", "entropic_gloo", "0.4"),
        ({"share_gpu": True, "gpu_memory_utilization": 0.3}, "0", "entropic_gloo", "0.3"),
        ({"share_gpu": True, "tensor": 2}, "0,1", "entropic_gloo", "0.4"),
    ],
)
def test_a_server_shares_the_ranks_gpu_over_gloo_when_asked_to(
    settings: dict[str, Any], gpus: str, backend: str, fraction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with two GPUs, simulated, where one rank trains."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    cfg = RolloutConfig(**settings)
    server = make_server(cfg, tmp_path)
    assert server.environment["CUDA_VISIBLE_DEVICES"] == gpus
    assert json.loads(server.arguments[server.arguments.index("--weight-transfer-config") + 1]) == {"backend": backend}
    assert server.arguments[server.arguments.index("--gpu-memory-utilization") + 1] == fraction
    assert (weight_backend(cfg) == "gloo") == cfg.share_gpu


@pytest.mark.parametrize(
    ("cores", "servers", "shares"),
    [([0, 1], 1, [[0, 1]]), ([0, 1], 2, [[0], [1]]), ([4, 6], 3, [[4], [6], [4]]), ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3, 4]])],
)
def test_cores_are_dealt_out(cores: list[int], servers: int, shares: list[list[int]]) -> None:
    assert [server_cores(cores, servers, index) for index in range(servers)] == shares


def test_the_log_tail_names_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "vllm_0.log"
    prefix = "(EngineCore pid=7) ERROR 01-01 10:00:00 [core.py:12] "
    lines = [
        "(APIServer pid=3) INFO 01-01 10:00:00 [launcher.py:1] Route: /health, Methods: GET",
        f"{prefix}Traceback (most recent call last):",
        f'{prefix}  File "x.py", line 1, in f',
        f"{prefix}ValueError: head_dim 7 is not supported",
        "INFO:     Shutting down",
        "RuntimeError: Engine core initialization failed. See root cause above.",
        "nanobind: leaked 4 instances!",
    ]
    log.write_text("\n".join(lines))
    assert log_tail(log) == [
        "ValueError: head_dim 7 is not supported",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    log.write_text("starting\nloading\n")
    assert log_tail(log) == ["starting", "loading"]
    assert log_tail(tmp_path / "none.log") == []


def test_closing_a_server_that_never_started_is_harmless(tmp_path: Path) -> None:
    server = make_server(RolloutConfig(), tmp_path)
    server.close()
    server.close()
    assert server.exit_code() is None


class Stranger(http.server.BaseHTTPRequestHandler):
    """Says that it is well to whoever asks, as another run's server does, and keeps what it was sent."""

    seen: list[dict[str, str]]
    key: str | None = None
    port: int | None = None

    def do_GET(self) -> None:
        self.seen.append(dict(self.headers))
        self.send_response(200)
        if self.key is not None:
            self.send_header(PROOF, proof_of(self.key, self.headers[CHALLENGE], self.port or 0))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def stranger_at(listener: socket.socket, key: str | None, port: int | None = None) -> Iterator[list[dict[str, str]]]:
    """A program that answers on the listener; the headers of the requests it gets."""
    handler = type("Handler", (Stranger,), {"seen": [], "key": key, "port": port})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield handler.seen
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("answers", ["nothing", "another key", "another port"])
def test_a_stranger_on_the_port_is_named_and_gets_no_key(tmp_path: Path, answers: str) -> None:
    server = make_server(RolloutConfig(), tmp_path)
    listener = server._listener
    port = listener.getsockname()[1]
    key = {"nothing": None, "another key": "key", "another port": server.key}[answers]
    with stranger_at(listener, key, port + (answers == "another port")) as seen:
        with pytest.raises(RolloutError, match=rf"rollout server 0 .*another program answers at .*{port} .*its key was not sent"):
            server.wait_ready(5.0)
        assert seen
    assert not any(server.key in value for headers in seen for value in headers.values())


def test_a_server_that_has_the_key_is_ready(tmp_path: Path) -> None:
    server = make_server(RolloutConfig(), tmp_path)
    with stranger_at(server._listener, server.key, server._listener.getsockname()[1]) as seen:
        server.wait_ready(5.0)
    assert seen


def test_a_model_whose_folder_is_a_pattern_is_reached_by_a_link(tmp_path: Path) -> None:
    plain = ["--model", "/models/a b #1", "--port", "1"]
    assert without_patterns(plain, tmp_path) == plain
    model = tmp_path / "run [1]*" / "hf"
    model.mkdir(parents=True)
    (model / "model.safetensors").touch()
    words = without_patterns(["--port", "1", "--model", str(model)], tmp_path)
    assert words[:3] == ["--port", "1", "--model"]
    assert glob.glob(os.path.join(words[3], "*.safetensors"))  # as vLLM looks for them
