"""The command line of checkpoint_tools."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from checkpoint_tools.inspection import describe
from checkpoint_tools.parity import compare_logits
from checkpoint_tools.verification import compare
from megatron_entropic.checkpoint_files.kind import locate
from megatron_entropic.conversion.exporting import ExportOptions, export_hf
from megatron_entropic.conversion.importing import ImportOptions, import_hf
from megatron_entropic.conversion.keys import Split
from megatron_entropic.hf.headers import DTYPE_NAMES, CheckpointError

DESCRIPTION = """\
Converts Hugging Face checkpoints to Megatron-Core and back, and inspects both.

A checkpoint is a Hugging Face directory, a distributed checkpoint (what import makes, and a run's checkpoints/step-N), or a run folder,
which stands for its latest checkpoint, or else for its exported model. Nothing here needs a GPU, Megatron's launcher, or more memory
than a few blocks of 32 MB (verify --logits excepted). Weights are read and written file by file; an interrupted import or export
resumes when it is started again, and its directory appears when it is complete.

  import  models/Qwen3-8B ckpts/qwen3-8b --tp 4 --pp 2     then: megatron-entropic train ... model.hf_path=ckpts/qwen3-8b
  export  runs/my-run exported/my-run --dtype bfloat16     the latest checkpoint, as transformers and vLLM read it
  inspect runs/my-run                                      step, layout, controller, sizes; --checksums reads every byte
  verify  runs/my-run models/Qwen3-8B                      tensor by tensor; --logits also asks transformers for its logits
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only when what was asked for was done, or is sound (inspect) or equal (verify); 1: not equal; 2: an error."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:
        print(f"checkpoint_tools: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("checkpoint_tools: interrupted; started again, an import or export resumes from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m checkpoint_tools", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    importing = commands.add_parser("import", help="Hugging Face directory -> distributed checkpoint")
    importing.add_argument("source", type=Path, metavar="HF_DIR", help="config.json, *.safetensors, tokenizer")
    importing.add_argument("out", type=Path, metavar="OUT_DIR", help="new directory; appears when complete")
    importing.add_argument("--tp", type=_positive, default=1, metavar="N", help="tensor-parallel ranks (see --ep)")
    importing.add_argument("--pp", type=_positive, default=1, metavar="N", help="pipeline stages (see --ep)")
    importing.add_argument(
        "--ep", type=_positive, default=1, metavar="N", help="expert-parallel ranks. Every layout can load the result; this one fastest"
    )
    importing.add_argument("--vocab-pad-multiple", type=_positive, default=128, metavar="N", help="as model.vocab_pad_multiple; 128")
    _conversion_options(importing, "as they are in HF_DIR")
    importing.set_defaults(run=_import)

    exporting = commands.add_parser("export", help="distributed checkpoint of any layout -> Hugging Face directory")
    exporting.add_argument("source", type=Path, metavar="CKPT_OR_RUN_DIR")
    exporting.add_argument("out", type=Path, metavar="OUT_DIR", help="new directory; appears when complete")
    exporting.add_argument("--like", type=Path, metavar="HF_DIR", help="take config and tokenizer from here, not from the checkpoint")
    exporting.add_argument("--shard-gb", type=_gibibytes, default=5.0, metavar="GB", help="largest weight file, GiB; 5")
    _conversion_options(exporting, "as they were trained; float32 takes the optimizer's masters where the checkpoint has them")
    exporting.set_defaults(run=_export)

    inspect = commands.add_parser(
        "inspect", help="contents of a checkpoint, without loading weights (but see --values); refuses a damaged one"
    )
    inspect.add_argument("path", type=Path, metavar="PATH")
    inspect.add_argument("--checksums", action="store_true", help="read every byte and compare with the recorded checksums")
    inspect.add_argument("--values", action="store_true", help="read every weight and refuse NaN and infinity")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="tensor by tensor: bit-identical, or how they differ")
    verify.add_argument("a", type=Path, metavar="A")
    verify.add_argument("b", type=Path, metavar="B")
    verify.add_argument(
        "--logits", action="store_true", help="also: A's logits by Megatron-Core against B's by transformers, in float32"
    )
    verify.add_argument("--prompt", action="append", metavar="TEXT", help="for --logits, can be repeated; default: a few of ours")
    verify.add_argument("--tolerance", type=float, default=1e-5, metavar="X", help="of logits, relative to the largest; 1e-5")
    verify.set_defaults(run=_verify)
    return parser


def _conversion_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--dtype", choices=list(DTYPE_NAMES.values()), help=f"of the written weights; default: {default}")
    parser.add_argument(
        "--allow-non-finite", action="store_true", help="write NaN and infinity, also those that --dtype makes, and say how many"
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="files at a time; default: one a core, up to 8",
    )


def _import(options: argparse.Namespace) -> int:
    split = Split(options.tp, options.pp, options.ep)
    count = import_hf(
        options.source,
        options.out,
        ImportOptions(split, options.dtype, options.vocab_pad_multiple, options.workers, options.allow_non_finite),
    )
    _say_not_finite(count)
    print(f"{options.out}: a distributed checkpoint; start a run from it with model.hf_path={options.out}")
    return 0


def _export(options: argparse.Namespace) -> int:
    found = locate(options.source)
    companions = options.like or found.companions
    if found.weights is None:
        raise CheckpointError(f"{found.path}: a Hugging Face directory already")
    if companions is None:
        raise CheckpointError(f"{found.path}: brings no config.json and tokenizer; say with --like HF_DIR where they are")
    export = ExportOptions(options.dtype, int(options.shard_gb * 2**30), options.workers, options.allow_non_finite)
    _say_not_finite(export_hf(found.weights, companions, options.out, export))
    print(f"{options.out}: a Hugging Face directory, from {found.path}")
    return 0


def _say_not_finite(count: int) -> None:
    if count:
        print(f"checkpoint_tools: warning: {count} value(s) were written as NaN or infinity", file=sys.stderr)


def _inspect(options: argparse.Namespace) -> int:
    print(describe(locate(options.path), checksums=options.checksums, values=options.values))
    return 0


def _verify(options: argparse.Namespace) -> int:
    a, b = locate(options.a), locate(options.b)
    comparison = compare(a, b)
    print(comparison)
    if not options.logits:
        return 0 if comparison.equal else 1
    parity = compare_logits(a, b, options.prompt, options.tolerance)
    print(parity)
    return 0 if comparison.equal and parity.within else 1


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _gibibytes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no size; give one above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
