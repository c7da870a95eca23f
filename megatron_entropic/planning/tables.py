"""Plain text tables, and numbers as people read them."""

from collections.abc import Sequence

from megatron_entropic.planning.cluster import GB


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, indent: str = "  ") -> list[str]:
    """Aligned lines; the first `left` columns are flush left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return [
        indent
        + "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def gb(count: float) -> str:
    """Bytes as GB with a decimal."""
    return f"{count / GB:.1f}"


def byte_count(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TB"


def seconds(value: float) -> str:
    """Seconds, short."""
    if value < 1e-5:
        return "0"
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s" if value >= 0.01 else f"{value * 1e3:.2g} ms"


def parameter_count(count: float) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.3g} M"
