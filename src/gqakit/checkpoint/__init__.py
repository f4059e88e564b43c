"""Checkpoints on disk: a lazy reader of Hugging Face directories and an atomic, resumable writer."""

from .atomic import atomic_file, write_bytes
from .dtypes import dtype_code, torch_dtype
from .header import Shard, TensorInfo
from .layout import Replacement, output_bytes
from .manifest import MANIFEST_NAME
from .output import check_output
from .reader import Checkpoint
from .sidefiles import copy_side_files, side_files
from .workspace import claimed_directory, output_lock
from .writer import WriteJob, WriteResult, write_checkpoint

__all__ = [
    "MANIFEST_NAME",
    "Checkpoint",
    "Replacement",
    "Shard",
    "TensorInfo",
    "WriteJob",
    "WriteResult",
    "atomic_file",
    "check_output",
    "claimed_directory",
    "copy_side_files",
    "dtype_code",
    "output_bytes",
    "output_lock",
    "side_files",
    "torch_dtype",
    "write_bytes",
    "write_checkpoint",
]
