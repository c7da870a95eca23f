"""Unpickling checkpoint metadata without trusting it: only the plain classes that torch's checkpoints are described with."""

import io
import pickle
from pathlib import Path
from typing import Any

from megatron_entropic.hf.headers import CheckpointError

_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_ALLOWED = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "torch": {
        "Size",
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "bool",
    },
    "torch.serialization": {"_get_layout"},
    _METADATA: {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    _PLANNER: {"BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a checkpoint has no use for")
        return super().find_class(module, name)


def read_metadata(folder: Path) -> Any:
    """torch.distributed.checkpoint's Metadata of a distributed checkpoint.

    Raises CheckpointError naming the file when it is missing, damaged, or a pickle of anything else.
    """
    path = folder / ".metadata"
    try:
        metadata = _Restricted(io.BytesIO(path.read_bytes())).load()
    except FileNotFoundError as problem:
        raise CheckpointError(f"{path}: missing; a distributed checkpoint is described there") from problem
    except Exception as problem:  # damaged pickles raise nearly anything
        raise CheckpointError(
            f"{path}: refused: not the description of a checkpoint ({type(problem).__name__}: {problem})"
        ) from problem
    if not (isinstance(getattr(metadata, "state_dict_metadata", None), dict) and isinstance(metadata.storage_data, dict)):
        raise CheckpointError(f"{path}: refused: it holds a {type(metadata).__name__}, not the description of a checkpoint")
    return metadata
