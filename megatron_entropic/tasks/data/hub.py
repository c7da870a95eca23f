"""Data sets by their name on the Hugging Face hub, where a network or a cache has them."""

import logging
import os
from pathlib import Path

from megatron_entropic.tasks.data.stores import ArrowStore, Store


def open_hub(name: str, *, split: str, subset: str) -> Store:
    """The rows of a split. Raises ValueError saying why it cannot be loaded: no such file, offline, no such name, no such split."""
    import datasets

    offline = next((variable for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(variable)), "")
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # each attempt to reach it is a warning; what came of them is said below
    try:
        loaded = datasets.load_dataset(name, subset or None, split=split)
    except Exception as error:
        why = f"{offline}={os.environ[offline]} keeps it offline" if offline else " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name}: is no file or folder here, and cannot be loaded by that name from the Hugging Face hub: {why}. Where there is no "
            f"network, give a file or a folder: elsewhere, datasets.load_dataset({name!r}).save_to_disk(FOLDER)"
        ) from error
    finally:
        logger.setLevel(level)
    if loaded._indices is not None:
        loaded = loaded.flatten_indices()
    return ArrowStore(Path(name), loaded.data.table.to_batches())
