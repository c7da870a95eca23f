"""`megatron-entropic new NAME --model HF_DIR --data FILE`: writes a recipe with settings for that model, data and machine."""

import argparse
import keyword
import tempfile
from pathlib import Path
from shlex import quote
from typing import Any

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.commands.new_choices import Devices, choose
from megatron_entropic.commands.new_data import read_data
from megatron_entropic.commands.new_text import recipe_text
from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.cluster import GPUS
from megatron_entropic.start_checks.model import check_model
from megatron_entropic.system.atomic_files import write_atomically
from megatron_entropic.system.gpus import find_gpus


def add_new(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `new`."""
    new = commands.add_parser(
        "new",
        allow_abbrev=False,
        help="write a recipe for your model and data",
        description="Reads the model's settings and tokenizer and the data, and writes a recipe: type, chat template, lengths, batch, "
        "learning rate, entropy target and layout, each with its reason. It is a file of Python to be read and changed.",
        epilog="Example: megatron-entropic new my_recipe --model models/Qwen3-8B --data data/train.jsonl\n"
        "  megatron-entropic train my_recipe.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("name", metavar="NAME", help="what the run is called, a name as of a Python function")
    new.add_argument("--model", type=Path, required=True, metavar="HF_DIR", help="Hugging Face directory")
    new.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help="problems with answers: JSON Lines, Parquet, Arrow; docs/data.md",
    )
    new.add_argument("--output", type=Path, metavar="FILE", help="where to write it (default: NAME.py here)")
    new.add_argument("--force", action="store_true", help="overwrite FILE")
    new.add_argument("--gpus", type=int, metavar="N", help="a layout for so many GPUs elsewhere (default: this machine's devices)")
    new.add_argument("--gpu", default="h100", metavar="KIND", help=f"with --gpus: {', '.join(GPUS)} (default: %(default)s)")
    new.set_defaults(command=_new)


def _new(options: argparse.Namespace) -> int:
    """Writes the recipe and says what to do with it."""
    output = _output(options)
    model, data = (path.expanduser().absolute() for path in (options.model, options.data))
    hf_dir = model_folder(model).hf_dir
    arch = Architecture.from_hf(hf_dir)
    devices = Devices.given(options.gpu, options.gpus) if options.gpus is not None else Devices.found(find_gpus())
    templated = _has_chat_template(hf_dir)
    facts = read_data(data, hf_dir, chat_template=templated)
    choices = choose(model, arch, facts, devices, chat_template=templated)
    text = recipe_text(output.stem, options.name, arch, facts, devices, choices)
    with tempfile.TemporaryDirectory() as folder:  # it is tried before it appears
        trial = Path(folder) / output.name
        trial.write_text(text, encoding="utf-8")
        check_model(load_config(str(trial)))
    write_atomically(output, text.encode())
    print(f"{output}: {facts.rows} problems, prompts of {facts.prompts}; responses of up to {choices.cfg.rollout.max_new_tokens}")
    print(f"train with: megatron-entropic train {quote(str(output))}")
    return 0


def _output(options: argparse.Namespace) -> Path:
    """The file to write. Raises ConfigError for names that are none of Python's, and for a file that is there."""
    output: Path = (options.output or Path(f"{options.name}.py")).expanduser()
    for what, name in (("NAME", options.name), ("--output", output.stem)):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ConfigError(f"{what}: {name!r} is no name of a Python function; take letters, digits and _, such as my_recipe")
    if output.suffix != ".py":
        raise ConfigError(f"--output={output}: a recipe is a file of Python, such as {output.stem}.py")
    if output.exists() and not options.force:
        raise ConfigError(f"{output} is there already; --force overwrites it, --output writes elsewhere")
    return output


def _has_chat_template(hf_dir: Path) -> bool:
    from megatron_entropic.rollout.prompt_encoder import load_tokenizer

    try:
        return bool(getattr(load_tokenizer(hf_dir), "chat_template", None))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{hf_dir}: its tokenizer cannot be read: {' '.join(str(error).split())[:300]}") from error
