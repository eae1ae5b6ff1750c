"""Read the pickles of torch and of numpy without executing anything in them.

In: a file of ``torch.save``, in either of its forms, or a plain pickle of
numpy arrays, such as Detectron's. Out: its dicts and lists, with a `Tensor` for
each tensor or array, of which only the name, the shape and the place are read,
and with an `Unknown` for every other object: no class in a file is ever
imported or called.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file before torch 1.6
_DEPTH = 16  # of containers in each other; those of published files are up to 6 deep
_STORAGES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
_SIZES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
_ARRAYS = {
    "f8": "float64",
    "f4": "float32",
    "f2": "float16",
    "i8": "int64",
    "i4": "int32",
    "i2": "int16",
    "i1": "int8",
    "u1": "uint8",
    "b1": "bool",
}


class ForeignError(ValueError):
    """A file of another kind, with what it is or lacks."""


class Tensor:
    """A tensor in a file: its shape, its place (the same for two names of one tensor), and how to load it.

    `load` raises RuntimeError, ValueError or OSError for values that are not there.
    """

    def __init__(self, shape: tuple[int, ...], place: object, load: Callable[[], torch.Tensor]) -> None:
        self.shape, self.place, self.load = shape, place, load


class Unknown:
    """An object of a class that is not read; it swallows whatever its pickle does to it."""

    name = ""
    state: object = None

    def __new__(cls, *_: object, **__: object) -> Unknown:
        return super().__new__(cls)

    def __call__(self, *_: object, **__: object) -> Unknown:
        return Unknown()

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Ignore an item of what was a list."""

    def extend(self, values: object) -> None:
        """Ignore items of what was a list."""

    def add(self, value: object) -> None:
        """Ignore an item of what was a set."""


def read(path: Path) -> Any:
    """Read the pickle in a file; raise `ForeignError`, and for damage whatever zipfile and pickle raise."""
    if zipfile.is_zipfile(path):
        return _read_zip(path)
    with open(path, "rb") as file:
        return _read_stream(file, path)


def is_program(path: Path) -> bool:
    """Check whether the file at `path` is a TorchScript archive, which holds a program next to its tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def flattened(content: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """List the tensors in nested containers by dotted names, and the text, numbers and `Unknown`s likewise."""
    leaves = dict(_leaves(content, ()))
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    return tensors, {name: leaf for name, leaf in leaves.items() if name not in tensors}


def _leaves(content: Any, above: tuple[int, ...], name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Unknown) and isinstance(content.state, dict):
        yield name, content  # the attributes of an object tell what it is, though it is not used
        content = content.state
    if not isinstance(content, (dict, list, tuple)):
        yield name, content
    elif id(content) not in above and len(above) < _DEPTH:
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from _leaves(value, (*above, id(content)), f"{name}.{key}" if name else str(key))


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
        if root is None:
            raise ForeignError("it is a zip archive without tensors of torch")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ForeignError("it comes from a big-endian machine")

        def storage(kind: Any, key: str, *_: object) -> _Storage:
            return _Storage(_dtype_of(kind), key, partial(_member, path, f"{root}data/{key}"))

        with archive.open(f"{root}data.pkl") as file:
            return _Unpickler(file, storage).load()


def _member(path: Path, name: str) -> bytearray:
    with zipfile.ZipFile(path) as archive:
        return bytearray(archive.read(name))


def _read_stream(file: BinaryIO, path: Path) -> Any:
    """Read a plain pickle, or torch's earlier form: three pickles of facts, the content, and the storages."""
    places: dict[str, tuple[int, int]] = {}  # of each storage: where it begins, and its size in bytes
    dtypes: dict[str, str] = {}

    def storage(kind: Any, key: str, location: str, count: int, view: tuple[str, int, int] | None = None) -> _Storage:
        dtypes[key] = _dtype_of(kind)
        return _Storage(dtypes[key], key, lambda: _slice(path, *places[key]), start=view[1] if view else 0)

    def load() -> Any:
        return _Unpickler(file, storage).load()

    content = load()
    if content != _MAGIC:
        return content
    load(), load()  # the version of the protocol, and the machine
    content = load()
    for key in load():
        count = int.from_bytes(file.read(8), "little")
        places[key] = file.tell(), count * _SIZES.get(dtypes[key], 1)
        if file.seek(places[key][1], 1) > path.stat().st_size:
            raise ValueError("its end is missing")
    return content


def _slice(path: Path, start: int, size: int) -> bytearray:
    with open(path, "rb") as file:
        file.seek(start)
        content = bytearray(file.read(size))
    if len(content) < size:
        raise ValueError("its end is missing")
    return content


class _Storage:
    def __init__(self, dtype: str, key: str, read: Callable[[], bytearray], start: int = 0) -> None:
        self.dtype, self.key, self.read, self.start = dtype, key, read, start


class _Array(Tensor):
    """A numpy array, whose pickle makes it empty first."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # the bytes of Python 2
        self.fill(data, dtype, shape, fortran)

    def fill(self, data: Any, dtype: Any, shape: Any, fortran: bool) -> None:
        """Take the values as bytes; raise ValueError for any but numbers."""
        if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, _Dtype) or dtype.name is None:
            raise ValueError("it holds arrays of objects")
        strides = _strides(shape[::-1])[::-1] if fortran else _strides(shape)
        content = partial(bytearray, data)
        super().__init__(tuple(shape), id(self), partial(_loaded, content, dtype.name, shape, strides, 0))


class _Dtype:
    """The dtype of a numpy array; `name` is torch's, None for one that torch lacks."""

    def __init__(self, code: str, *_: object) -> None:
        self.name = _ARRAYS.get(code.lstrip("<=|"))

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            self.name = None


def _dtype_of(kind: object) -> str:
    name = getattr(kind, "name", "")
    match = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name)
    return _STORAGES.get(match[1], "uint8") if match else "uint8"


def _strides(shape: Any) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _loaded(read: Callable[[], bytearray], dtype: str, shape: Any, strides: Any, offset: int) -> torch.Tensor:
    import torch

    content = read()
    if not content or not math.prod(shape):
        return torch.empty(shape, dtype=getattr(torch, dtype))
    values = torch.frombuffer(content, dtype=getattr(torch, dtype))
    return values.as_strided(tuple(shape), tuple(strides), offset).clone(memory_format=torch.contiguous_format)


class _Function:
    """A function that a pickle may call, but not change."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes functions")


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: object, dtype: str = "") -> object:
    if not isinstance(storage, _Storage):
        return Unknown()
    start = offset + storage.start
    load = partial(_loaded, storage.read, dtype or storage.dtype, shape, strides, start)
    return Tensor(tuple(shape), (storage.key, start, tuple(shape), tuple(strides)), load)


def _tensor_with_dtype(*arguments: Any) -> object:
    return _tensor(*arguments, dtype=arguments[6].name.removeprefix("torch."))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> _Array:
    array = _Array()
    array.fill(bytes(data), dtype, shape, order == "F")
    return array


def _first(value: object, *_: object) -> object:
    return value


_FUNCTIONS: dict[str, Callable[..., object]] = {
    "collections.defaultdict": lambda *_: {},
    "torch.Size": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": lambda text, *_: text.encode("latin1"),
}
# What stands in for the classes and functions that make tensors, arrays and containers; all others are `Unknown`.
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    **{name: _Function(function) for name, function in _FUNCTIONS.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, storage: Callable[..., _Storage]) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        whole = f"{module}.{name}"
        return _KNOWN.get(whole) or type("Unknown", (Unknown,), {"name": whole})

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or pid[0] != "storage":
            raise pickle.UnpicklingError(f"it refers to {pid!r:.50}")
        return self._storage(*pid[1:])
