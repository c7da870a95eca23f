"""Helpers of this folder's tests: conversions with fixed options, and folders as bytes."""

from pathlib import Path

from megatron_entropic.conversion.exporting import ExportOptions, export_hf
from megatron_entropic.conversion.importing import ImportOptions, import_hf
from megatron_entropic.conversion.keys import Split


def imported(source: Path, out: Path, tensor: int = 1, pipeline: int = 1, expert: int = 1, dtype: str | None = None) -> Path:
    import_hf(source, out, ImportOptions(Split(tensor, pipeline, expert), dtype))
    return out


def exported(checkpoint: Path, out: Path, **options: object) -> Path:
    export_hf(checkpoint / "policy", checkpoint / "hf", out, ExportOptions(**options))  # type: ignore[arg-type]
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` but the checksums of an export, by relative name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "SHA256SUMS")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
