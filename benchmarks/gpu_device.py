"""Prints the GPU and the versions that matter; exit code 1, and what to do, where the kernels cannot run."""

import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from importlib.util import find_spec

TRITON = (3, 4)
"""The oldest Triton whose language has what the kernels use."""


def obstacle() -> str:
    """Why the kernels cannot run here; empty where they can."""
    if missing := [name for name in ("torch", "triton", "numpy") if find_spec(name) is None]:
        return f"{sys.executable} has no {', '.join(missing)}: install it, or name another interpreter with PYTHON=/path/to/python"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU (built for CUDA {torch.version.cuda})"
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < TRITON:
        return f"the kernels need Triton {'.'.join(map(str, TRITON))} or newer, this is {triton.__version__}"
    if not (os.environ.get("CC") or any(shutil.which(name) for name in ("gcc", "clang"))):
        return "Triton needs a C compiler for its launchers: install gcc, or name one with CC=/path/to/compiler"
    return ""


def main() -> int:
    if why := obstacle():
        print(why, file=sys.stderr)
        return 1
    import torch
    import triton

    properties = torch.cuda.get_device_properties(0)
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.platform()}")
    print(f"python {platform.python_version()}, torch {torch.__version__} (CUDA {torch.version.cuda}), triton {triton.__version__}")
    print(
        f"{properties.name}: {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} multiprocessors, "
        f"compute capability {properties.major}.{properties.minor}; {torch.cuda.mem_get_info()[0] / 2**30:.0f} GiB free"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
