"""Read ResNet50 weights from Keras files in all forms.

In: an HDF5 file or a ``.keras`` archive. Out: torchvision's tensors. Keras has
written three forms, which are recognised by their content:

- up to Keras 2, and in today's ``.h5``, a group for each layer:
  ``conv1_conv/conv1_conv/kernel:0``; under ``model_weights`` in whole models;
- Keras 1, likewise, with ``conv1/conv1_W_1:0`` and ``bn_conv1_running_std_1:0``,
  which holds the variance;
- ``.weights.h5``, and with it ``.keras``: ``layers/conv2d_1/vars/0``, numbered
  by class; the layer's own name is next to it from Keras 3.6 on.

The model's configuration is not read, let alone executed.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import h5py

from rn50feat.errors import WeightsError
from rn50feat.model.weight_files import hdf5, names
from rn50feat.model.weight_files.names import CLASSIFIER, Naming
from rn50feat.model.weight_files.translation import Stored, Translated, shown_name, translate

_LARGEST = 1 << 30  # bytes of weights in an archive: a ResNet50 in float64 with its optimizer has 0.6 GiB

_PARTS = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
    **{name: name for name in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")},
}
# What the numbers of a layer's tensors mean, by the layer's class.
_NUMBERED = {
    "conv2d": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}
_ROOTS = ("layers/", "_layer_checkpoint_dependencies/")  # the second in Keras 2.12 and 2.13


def read(path: Path) -> Translated:
    """Read the tensors of a Keras file; raise `WeightsError` if they are not a ResNet50's."""
    with hdf5.opened(path, _content(path)) as file:
        # Keras 2.12 on Windows wrote backslashes.
        held = {name.replace("\\", "/"): item for name, item in hdf5.datasets(file, path).items()}
        root = next((root for root in _ROOTS if any(name.startswith(root) for name in held)), None)
        found = _by_class(held, root, path) if root else _by_layer(file, held, path)
        variants: tuple[Naming, ...] = ("keras", "keras-old")
        known = {v: len({e.source for e in names.expected(v, classifier=True)} & found.keys()) for v in variants}
        variant = max(variants, key=lambda variant: known[variant])
        if not known[variant]:
            raise WeightsError(
                f"{path} has no layer of Keras's ResNet50 (such as conv1_conv):"
                " use a weights file of keras.applications.ResNet50"
            )
        return translate(path, variant, found)


def _content(path: Path) -> Path | io.BytesIO:
    """Return the HDF5 file at `path`, or the one in the archive at `path`."""
    if h5py.is_hdf5(path):
        return path
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(names.ARCHIVED)
            if entry.file_size > _LARGEST:
                raise WeightsError(f"{path} holds {entry.file_size} bytes of weights: use a file of one ResNet50")
            return io.BytesIO(archive.read(entry))  # checks the CRC, too
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, LookupError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{path} is a damaged .keras archive ({error}): download it again") from error


def _by_layer(file: h5py.File, held: Mapping[str, h5py.Dataset], path: Path) -> dict[str, Stored]:
    """Collect the tensors of the form with a group for each layer."""
    root = "model_weights/" if any(name.startswith("model_weights/") for name in held) else ""
    with hdf5.damage_named(path):
        group = file[root] if root else file
    if hdf5.text(group, "backend", path) == "theano":
        raise WeightsError(f"{path} was written with Theano, whose kernels are mirrored: convert it with Keras 2 first")
    found: dict[str, Stored] = {}
    for name, dataset in held.items():
        if name.startswith(root):
            layer = name.removeprefix(root).partition("/")[0]
            _add(found, f"{layer}/{_part(layer, name.rpartition('/')[2])}", hdf5.stored(dataset, name, path), path)
    return found


def _part(layer: str, leaf: str) -> str:
    """Return a tensor's role in its layer (kernel, bias, gamma, …), or its own name if that is unknown."""
    match = re.fullmatch(r"(.+?)(?:_\d+)?(?::\d+)?", leaf.removeprefix(f"{layer}_"))
    return _PARTS.get(match[1], leaf) if match else leaf


def _by_class(held: Mapping[str, h5py.Dataset], root: str, path: Path) -> dict[str, Stored]:
    """Collect the tensors of the form with numbered layers and numbered tensors."""
    places = {name: re.fullmatch(rf"{root}([^/]+)/vars/([0-9])", name) for name in held if name.startswith(root)}
    with hdf5.damage_named(path):
        groups = {place[1]: held[name].parent for name, place in places.items() if place}
    called = {layer: hdf5.text(group, "name", path) for layer, group in groups.items()}
    if not any(called.values()):  # written before Keras 3.6
        called |= _called_by_order(list(groups))
    found: dict[str, Stored] = {}
    for name, place in places.items():
        parts = _NUMBERED.get(_counted(place[1])[0], ()) if place else ()
        known = place and called[place[1]] and int(place[2]) < len(parts)
        key = f"{called[place[1]]}/{parts[int(place[2])]}" if place and known else name
        _add(found, key, hdf5.stored(held[name], name, path), path)
    return found


def _called_by_order(layers: list[str]) -> dict[str, str]:
    """Find the names of numbered layers, which count 0, 1, 2 or (in Keras 2.12 and 2.13) 0, 2, 4.

    Their order is that of `names.units` (verified with Keras 2.12 to 3.5).
    """
    units = list(names.units())
    called: dict[str, str] = {}
    for kind, own in (
        ("conv2d", [unit.layers["keras"][0] for unit in units]),
        ("batch_normalization", [unit.layers["keras"][1] for unit in units]),
        ("dense", [CLASSIFIER["keras"]]),
    ):
        alike = [layer for layer in layers if _counted(layer)[0] == kind]
        called.update(zip(sorted(alike, key=lambda layer: _counted(layer)[1]), own))
    return called


def _counted(layer: str) -> tuple[str, int]:
    """Split a layer such as ``conv2d_3`` into class and number; the first layer has no number."""
    match = re.fullmatch(r"(.+?)_([0-9]{1,9})", layer)
    return (match[1], int(match[2])) if match else (layer, 0)


def _add(found: dict[str, Stored], key: str, stored: Stored, path: Path) -> None:
    if key in found:
        both = f"{shown_name(found[key].name)} and {shown_name(stored.name)}"
        raise WeightsError(f"{path} holds {key} twice, as {both}: use a file with one network's weights")
    found[key] = stored
