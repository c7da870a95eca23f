"""Folder of NeMo-Run's experiments: in this checkout, unless the user says otherwise."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULT = ROOT / "build" / "launch"


def use_home(home: Path | None = None) -> None:
    """Has NeMo-Run use `home`, by default $NEMORUN_HOME, else DEFAULT. To be called before it is imported: it reads that once."""
    os.environ["NEMORUN_HOME"] = str(Path(home or os.environ.get("NEMORUN_HOME") or DEFAULT).expanduser().resolve())
