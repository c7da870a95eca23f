"""The command line of checkpoint_tools."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from checkpoint_tools.inspection import describe
from checkpoint_tools.verification import compare


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only when what was asked about is sound (inspect) or equal (verify)."""
    parser = argparse.ArgumentParser(prog="python -m checkpoint_tools", description="Looks into Hugging Face checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    inspect = commands.add_parser("inspect", help="what is in a checkpoint, from headers alone; refuses one that is not sound")
    inspect.add_argument("path", type=Path, metavar="PATH", help="a Hugging Face directory, or a run folder (its hf/)")
    verify = commands.add_parser("verify", help="tensor by tensor: equal, or how they differ")
    verify.add_argument("a", type=Path, metavar="A", help="a Hugging Face directory, or a run folder")
    verify.add_argument("b", type=Path, metavar="B")
    options = parser.parse_args(arguments)
    try:
        if options.command == "inspect":
            print(describe(_hf_dir(options.path)))
            return 0
        comparison = compare(_hf_dir(options.a), _hf_dir(options.b))
    except (ValueError, OSError) as error:
        print(f"checkpoint_tools: error: {error}", file=sys.stderr)
        return 2
    print(comparison)
    return 0 if comparison.equal else 1


def _hf_dir(path: Path) -> Path:
    """The Hugging Face directory meant by `path`: of a run folder, its exported model."""
    return path / "hf" if (path / "metrics.jsonl").exists() else path


if __name__ == "__main__":
    sys.exit(main())
