"""Read the datasets of an HDF5 file that may come from anywhere.

In: a file. Out: its datasets by path, as tensors that are read one by one.
Anything that would make HDF5 open other files, run other filters or loop
forever is refused: links other than plain ones, external and virtual storage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from rn50feat.durable.hdf5_storage import link_fault, storage_fault
from rn50feat.errors import WeightsError
from rn50feat.model.weight_files.translation import Array, Stored, shown_name

_LONGEST_TEXT = 4096


@contextmanager
def opened(path: Path, content: Path | IO[bytes]) -> Iterator[h5py.File]:
    """Open `content`, an HDF5 file; raise a `WeightsError` that names `path` if it is damaged."""
    with damage_named(path):
        file = h5py.File(content, "r", locking=False)
    with file:
        yield file


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn any error that h5py raises on a damaged file into a `WeightsError`."""
    try:
        yield
    except WeightsError:
        raise
    except (
        Exception
    ) as error:  # OSError, RuntimeError, KeyError, ValueError, TypeError and others, as the bytes have it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} is a damaged HDF5 file ({reason}): download it again") from error


def datasets(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    """Find all datasets of a file by path; raise `WeightsError` for links or storage outside the file."""
    found: dict[str, h5py.Dataset] = {}
    waiting: deque[tuple[str, h5py.Group]] = deque([("", file)])
    with damage_named(path):
        seen = {h5py.h5o.get_info(file.id).addr}
        while waiting:
            at, group = waiting.popleft()
            for name in group:
                item, inner = _child(group, name, path), f"{at}/{name}".lstrip("/")
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:  # groups that hold themselves would never end
                    raise _refusal(path, inner, "a second name of something else")
                seen.add(address)
                if isinstance(item, h5py.Dataset):
                    if kind := storage_fault(item):
                        raise _refusal(path, inner, kind)
                    found[inner] = item
                elif isinstance(item, h5py.Group):
                    waiting.append((inner, item))
    return found


def _child(group: h5py.Group, name: str, path: Path) -> Any:
    if kind := link_fault(group, name):
        raise _refusal(path, name, kind)
    return group[name]


def _refusal(path: Path, name: str, kind: str) -> WeightsError:
    return WeightsError(
        f"{path} is refused: {shown_name(name)} is {kind}: use a file that holds its own tensors, as Keras writes it"
    )


def stored(dataset: h5py.Dataset, name: str, path: Path) -> Stored:
    """Wrap a dataset as a tensor that is read as float32 while the file is open."""

    def read() -> Array:
        with damage_named(path):
            if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8:
                raise WeightsError(
                    f"{path}: {shown_name(name)} holds {dataset.dtype}, not float16, float32 or float64:"
                    " save the network in float32"
                )
            value = np.empty(dataset.shape, np.float32)
            dataset.read_direct(value)
            return value

    with damage_named(path):
        return Stored(name, tuple(dataset.shape or ()), read)


def text(item: Any, name: str, path: Path) -> str | None:
    """Read an attribute that is a single string, text or bytes; None if there is none of that name."""
    with damage_named(path):
        if name not in item.attrs:
            return None
        kind = item.attrs.get_id(name)
        if kind.shape != () or kind.dtype.kind not in "OS" or kind.dtype.itemsize > _LONGEST_TEXT:
            raise ValueError(f"its attribute {name} is not a string")
        value = item.attrs[name]
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
