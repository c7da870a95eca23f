"""Resolves the GPU environment: `python requirements/lock.py` writes requirements/gpu.lock anew, which `make gpu-lock` does.

What it needs are setup.py's requirements with its extras gpu, test, gguf, wandb and mlflow. Packages that the CPU environment has too
keep the version of requirements/cpu.lock, where that can be; all others keep theirs. uv resolves, from metadata alone: no package is
downloaded whole. It asks the index that pip is configured for.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_LOCK = ROOT / "requirements" / "cpu.lock"
GPU_LOCK = ROOT / "requirements" / "gpu.lock"
EXTRAS = ("gpu", "test", "gguf", "wandb", "mlflow")
HEADER = """\
# The GPU environment: Python 3.11, Linux on x86-64, CUDA 13, a driver of 580 or newer. Made by `make gpu-lock`, installed by
# `make env-gpu`: transformer_engine_torch is a source package, which is built last, against the torch that is named here.
"""


def main() -> int:
    """Writes the file; returns the exit code of uv, whose reasons are shown when nothing resolves."""
    status, text = resolve(GPU_LOCK.read_text(encoding="utf-8") if GPU_LOCK.exists() else "")
    if status:
        print(f"error: requirements/gpu.lock: setup.py's extras {', '.join(EXTRAS)} do not resolve\n{text}", file=sys.stderr)
        return status
    GPU_LOCK.write_text(text, encoding="utf-8")
    print(f"{len(pins(text))} packages in {GPU_LOCK.relative_to(ROOT)}")
    return 0


def pins(lock: str) -> dict[str, str]:
    """Versions of a lock file by the packages' normalized names."""
    found = re.findall(r"^([\w.-]+)==(\S+)", lock, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def preferred(cpu_lock: str, gpu_lock: str) -> dict[str, str]:
    """Versions to keep where they can be kept: the CPU environment's, without its local builds ("+cpu"), over the present ones."""
    shared = {name: version for name, version in pins(cpu_lock).items() if "+" not in version}
    return pins(gpu_lock) | shared


def resolve(gpu_lock: str, cache: Path | None = None) -> tuple[int, str]:
    """(0, the text of the file), or uv's exit code and its output. `gpu_lock`: the present text, whose versions are kept."""
    versions = preferred(CPU_LOCK.read_text(encoding="utf-8"), gpu_lock)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "gpu.lock"
        # uv keeps the versions that it finds in the file it is to write, as far as it can.
        made.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()), encoding="utf-8")
        environ = {**os.environ, **index_settings(pip_config(), os.environ)}
        done = subprocess.run(uv_command(made, cache), cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.returncode, done.stderr or done.stdout
        return 0, HEADER + made.read_text(encoding="utf-8")


def uv_command(made: Path, cache: Path | None) -> list[str]:
    """For the machines of the file, not this one."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "setup.py", f"--output-file={made}"]
    command += [f"--extra={name}" for name in EXTRAS]
    command += ["--config-file=requirements/uv.toml", "--python-version=3.11", "--python-platform=x86_64-manylinux_2_31"]
    command += ["--no-annotate", "--no-header", "--index-strategy=unsafe-best-match"]  # like pip: the best version of all indexes
    return command if cache is None else [*command, f"--cache-dir={cache}"]


def pip_config() -> str:
    """pip's settings as it lists them, a `section.name='value'` a line."""
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def index_settings(config: str, environ: Mapping[str, str]) -> dict[str, str]:
    """uv's environment variables for the indexes, certificate and patience that pip is configured for; what is set for uv stays.

    Folders of wheels are left out: whatever lies there, such as a torch for CPUs, is this machine's and not in the index.
    """
    found: dict[str, str] = dict(re.findall(r"^(?:\w+|:env:)\.([\w-]+)='(.*)'$", config, flags=re.MULTILINE))
    extra = [url for url in found.get("extra-index-url", "").split() if not url.startswith("file:")]
    settings = {
        "UV_DEFAULT_INDEX": found.get("index-url", ""),
        "UV_INDEX": " ".join(extra),
        "SSL_CERT_FILE": found.get("cert", ""),
        "UV_HTTP_TIMEOUT": found.get("timeout") or found.get("default-timeout", ""),
    }
    return {name: value for name, value in settings.items() if value and name not in environ}


if __name__ == "__main__":
    sys.exit(main())
