"""A cache of tensors on disk: entries are safetensors, written atomically, and written again if damaged."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusion.common.atomic import new_file


def entry(folder: Path, *key: bytes) -> Path:
    """The file of what belongs to a key; some hundred folders share the files."""
    name = hashlib.blake2b(b"".join(key), digest_size=20).hexdigest()
    return folder / name[:2] / f"{name}.safetensors"


def read_entry(file: Path) -> dict[str, Tensor] | None:
    """The tensors of an entry by name; None where there is none, or a damaged one."""
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError):
        return None


def write_entry(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write an entry; several processes may write the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as aside:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, aside)


def bytes_of(tensor: Tensor) -> bytes:
    """The memory of a tensor, for fingerprints."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
