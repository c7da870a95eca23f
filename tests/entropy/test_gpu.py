"""The checks of a GPU, one test each; skipped without one (benchmarks/gpu.sh runs them where there is no pytest)."""

from typing import Any

import pytest
import torch

from tests.entropy import gpu_checks, kernel_checks

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize("check", [*kernel_checks.CHECKS, *gpu_checks.CHECKS], ids=lambda check: check.__name__)
def test_on_a_gpu(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_checks, "DEVICE", "cuda")
    check()
