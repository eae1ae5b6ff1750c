"""Read the weights files of Keras and TF-slim without TensorFlow.

In: a Keras file (HDF5 or ``.keras``) or a TensorFlow checkpoint. Out: its
tensors under torchvision's names, and which published network they belong to.
Order: `names`, `translation`; `hdf5`, `keras`, `apart` for Keras, which need
h5py; `crc32c`, `protobuf`, `table`, `checkpoint`, `slim` for checkpoints, which
need google-crc32c. Nothing in a file is ever executed.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from rn50feat.errors import WeightsError
from rn50feat.model.weight_files import apart, checkpoint, names, slim
from rn50feat.model.weight_files.translation import Translated

__all__ = ["Translated", "files", "read", "recognise", "resolve", "variant"]

_HDF5 = b"\x89HDF\r\n\x1a\n"


def resolve(path: Path) -> Path | None:
    """Find the file that a path of weights refers to; None if there is none.

    TensorFlow names a checkpoint by the prefix of its files: for ``x.ckpt``, or
    one of its data files, the file is ``x.ckpt.index``.
    """
    shard = re.fullmatch(r"(.+)\.data-\d{5}-of-\d{5}", path.name)
    index = path.with_name(f"{shard[1] if shard else path.name}.index")
    if index.is_file() and (shard or not path.is_file()):
        return index
    return path if path.is_file() else None


def recognise(path: Path) -> Literal["keras", "checkpoint"] | None:
    """Recognise a Keras file or a TensorFlow checkpoint by its content; None for any other file.

    Raises `WeightsError` for a file that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(_HDF5))
        if head == _HDF5:
            return "keras"
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                return "keras" if names.ARCHIVED in archive.namelist() else None
        return "checkpoint" if checkpoint.recognise(path) else None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): fix that, or use another file") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError, LookupError):
        return None


def files(path: Path) -> tuple[Path, ...]:
    """List the files of the weights at `path`, itself first; raise `WeightsError` if one is missing."""
    return checkpoint.files(path) if recognise(path) == "checkpoint" else (path,)


def variant(path: Path) -> str | None:
    """Find which network the file at `path` is for; None for a file of neither kind. Raises the errors of `read`."""
    kind = recognise(path)
    if kind == "keras":
        return read(path).variant
    return "slim" if kind == "checkpoint" else None


def read(path: Path) -> Translated:
    """Read the tensors of a Keras or TF-slim file; raise `WeightsError` if they are not a ResNet50's."""
    kind = recognise(path)
    if kind == "checkpoint":
        return slim.read(path)
    if kind == "keras":
        return apart.read(path)
    raise WeightsError(f"{path} is neither a Keras file nor a TensorFlow checkpoint: use one of those")
