"""Environment of a step's command: in the environment of this Python, in a pyxis/enroot container, or through Apptainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

KINDS = ("none", "pyxis", "apptainer")


@dataclass(frozen=True)
class Container:
    """`image` is what the tool takes: a .sqsh or registry image for pyxis, a .sif for Apptainer; `mounts` are SRC[:DST] paths."""

    kind: str
    image: str
    mounts: tuple[str, ...]
    gpus: bool

    def srun_flags(self) -> list[str]:
        """Options of srun."""
        if self.kind != "pyxis":
            return []
        mounts = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in self._mounts())
        return [
            f"--container-image={self.image}",
            f"--container-mounts={mounts}",
            f"--container-workdir={os.getcwd()}",
            "--no-container-mount-home",
        ]

    def command(self, command: list[str]) -> list[str]:
        """The command that srun starts on the nodes so that `command` runs inside."""
        if self.kind != "apptainer":
            return command
        binds = [word for mount in self._mounts() for word in ("--bind", mount)]
        return ["apptainer", "exec", *(["--nv"] if self.gpus else []), *binds, "--pwd", os.getcwd(), self.image, *command]

    def _mounts(self) -> list[str]:
        """The folder the job was submitted from, and the checkout where that is another, are always there, under their own paths."""
        checkout = str(Path(__file__).resolve().parent.parent)
        imported_from = os.environ.get("PYTHONPATH", "").split(":")  # an installed package is not: the image has its own
        return list(dict.fromkeys([os.getcwd(), *([checkout] if checkout in imported_from else []), *self.mounts]))
