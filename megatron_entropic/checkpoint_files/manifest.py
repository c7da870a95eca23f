"""A folder's manifest: size and SHA-256 of every file below it, and whether the folder still is what the manifest says."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_BLOCK = 1 << 20
Fingerprint = dict[str, Any]
"""Of a file: {"bytes": its size, "sha256": its checksum in hexadecimal}."""


def fingerprint(path: Path) -> Fingerprint:
    """Size and checksum of a file, as a manifest has them. Other threads run meanwhile."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def write_manifest(folder: Path, known: Mapping[str, Fingerprint], ignore: str | None = None) -> None:
    """Writes the manifest of all files below `folder` but `ignore`, reading those whose fingerprint is not `known` yet by name."""
    found = {name: path for name, path in files_below(folder).items() if name != ignore}
    files = {name: dict(known[name]) if name in known else fingerprint(path) for name, path in found.items()}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")


def check(folder: Path, *, sizes_only: bool = False) -> list[str]:
    """Problems of a folder's files; empty when they are exactly what was written (or, `sizes_only`, as long)."""
    expected, problems = read_manifest(folder)
    return problems if sizes_only else [*problems, *damaged_files(folder, expected)]


def read_manifest(folder: Path) -> tuple[dict[str, Fingerprint], list[str]]:
    """(what each file below `folder` should hold, by relative name; what is wrong as far as names and sizes tell)."""
    if not folder.is_dir():
        return {}, ["no such checkpoint"]
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in manifest.items()}
    except OSError as error:
        return {}, [f"{MANIFEST} cannot be read: {error.strerror}"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, [f"{MANIFEST} is damaged: {error}"]
    found = files_below(folder)
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} does not belong there" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if (actual := found[name].stat().st_size) != expected[name]["bytes"]:
            problems.append(f"{name} has {actual} bytes instead of {expected[name]['bytes']}")
    return expected, problems


def damaged_files(folder: Path, files: Mapping[str, Fingerprint]) -> list[str]:
    """Files whose content is not what was written, or cannot be read; `read_manifest` tells of the others.

    Reads them whole, so that several processes may share the work.
    """
    problems = []
    for name, expected in files.items():
        try:
            if (folder / name).stat().st_size == expected["bytes"] and fingerprint(folder / name) != expected:
                problems.append(f"{name} has other content than was written (checksum)")
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}")
    return problems


def files_below(folder: Path) -> dict[str, Path]:
    """All files of a folder and its folders but the manifest, by relative name, in order."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST}
