"""Data sets by their name on the Hugging Face hub, where a network or a cache has them."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from megatron_entropic.tasks.data.stores import ArrowStore, Store

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_CONNECT_S = 5.0


def open_hub(name: str, *, split: str, subset: str) -> Store:
    """The rows of a split; from the local cache where the hub is out of reach.

    Raises ValueError saying why it cannot be loaded: no such file, offline, no such name, no such split.
    """
    import datasets

    offline = _reason_to_be_offline()
    try:
        with _quietly(offline=bool(offline)):
            loaded = datasets.load_dataset(name, subset or None, split=split)
    except Exception as error:
        why = f"{offline}, and it is not in the cache" if offline else " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name}: is no file or folder here, and cannot be loaded by that name from the Hugging Face hub: {why}. Where there is no "
            f"network, give a file or a folder: elsewhere, datasets.load_dataset({name!r}).save_to_disk(FOLDER)"
        ) from error
    if loaded._indices is not None:
        loaded = loaded.flatten_indices()
    return ArrowStore(Path(name), loaded.data.table.to_batches())


def _reason_to_be_offline() -> str:
    """Why the hub is not asked; empty when it is. Found out here: the library would try again for half a minute."""
    from huggingface_hub.constants import ENDPOINT

    if variable := next((name for name in _OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")), ""):
        return f"{variable}={os.environ[variable]} keeps it offline"
    if any(os.environ.get(proxy) for proxy in _PROXIES):
        return ""
    address = urlsplit(ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached ({error.strerror or error})"
    return ""


@contextmanager
def _quietly(*, offline: bool) -> Iterator[None]:
    """Without a warning for every attempt to reach the hub, and without any attempt when `offline`."""
    from datasets import config
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    before = (logger.level, constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE)
    logger.setLevel(logging.ERROR)
    if offline:
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        logger.setLevel(before[0])
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before[1:]
