"""A folder's manifest: size and SHA-256 of every file below it, and whether the folder still is what the manifest says."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_BLOCK = 1 << 20


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as a manifest has them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def write_manifest(folder: Path, known: Mapping[str, dict[str, Any]], ignore: str | None = None) -> None:
    """Writes the manifest of all files below `folder` but `ignore`, reading those whose fingerprint is not `known` yet by name."""
    found = {name: path for name, path in files_below(folder).items() if name != ignore}
    files = {name: dict(known[name]) if name in known else fingerprint(path) for name, path in found.items()}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")


def check(folder: Path, *, sizes_only: bool = False) -> list[str]:
    """What is wrong with a folder's files; empty when they are exactly what was written (or, `sizes_only`, as long)."""
    if not folder.is_dir():
        return ["no such checkpoint"]
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items()}
    except OSError as error:
        return [f"{MANIFEST} cannot be read: {error.strerror}"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} is damaged: {error}"]
    found = files_below(folder)
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} does not belong there" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        size, digest = expected[name]
        actual = found[name].stat().st_size
        if actual != size:
            problems.append(f"{name} has {actual} bytes instead of {size}")
        elif not sizes_only and fingerprint(found[name])["sha256"] != digest:
            problems.append(f"{name} has other content than was written (checksum)")
    return problems


def files_below(folder: Path) -> dict[str, Path]:
    """All files of a folder and its folders but the manifest, by relative name, in order."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST}
