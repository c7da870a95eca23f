"""Prints the GPU and the versions that matter; exit code 1 without a GPU or without Triton."""

import platform
import sys
from datetime import UTC, datetime


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU (built for CUDA {torch.version.cuda})", file=sys.stderr)
        return 1
    import triton

    major, minor = (int(part) for part in triton.__version__.split(".")[:2])
    properties = torch.cuda.get_device_properties(0)
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.platform()}")
    print(f"python {platform.python_version()}, torch {torch.__version__} (CUDA {torch.version.cuda}), triton {triton.__version__}")
    print(
        f"{properties.name}: {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} multiprocessors, "
        f"compute capability {properties.major}.{properties.minor}; {torch.cuda.mem_get_info()[0] / 2**30:.0f} GiB free"
    )
    if (major, minor) < (3, 4):
        print("the kernels need Triton 3.4 or newer", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
