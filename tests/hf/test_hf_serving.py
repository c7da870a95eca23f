"""Which models a vLLM server can serve here is known before one is started."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.config import BatchConfig, ParallelConfig, RolloutConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.layout import CPU_HEAD_SIZES, check_layout, check_serving
from megatron_entropic.platform import accelerated
from tests import tiny_models
from tests.command_line import megatron_entropic


@pytest.mark.slow
def test_the_head_sizes_are_those_of_the_installed_vllm() -> None:
    ask = "from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend as B; print(*B.get_supported_head_sizes())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tuple(map(int, done.stdout.splitlines()[-1].split())) == CPU_HEAD_SIZES


@pytest.mark.slow
@pytest.mark.skipif(accelerated(), reason="on a GPU vLLM serves these")
def test_heads_that_no_server_can_hold_are_refused_at_once(tmp_path: Path) -> None:
    tiny_models.save("llama", tmp_path / "model")
    arch = Architecture.from_hf(tmp_path / "model")
    assert "cannot serve heads of 8 (head_dim) on this machine, only of 32, 64, 80" in check_serving(arch)[0]
    served = RolloutConfig(engine="vllm")
    assert check_layout(arch, ParallelConfig(), BatchConfig(), served) == []  # a layout that other machines can run
    settings = [f"model.hf_path={tmp_path / 'model'}", f"run.dir={tmp_path / 'run'}", "parallel.tensor=1"]
    outcome = megatron_entropic("train", "quickstart", "rollout.engine=vllm", *settings)
    assert outcome.code == 2
    assert "cannot serve heads of 8" in outcome.output
    assert not (tmp_path / "run").exists()
