"""Write the weights of layers into HDF5 as each generation of Keras laid them out."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

Layers = Mapping[str, Mapping[str, np.ndarray]]
KERAS_1 = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}
ORDER = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")


def write_by_layer(
    path: Path, layers: Layers, *, leaf: str = "{layer}/{part}:0", whole: bool = False, backend: str = "tensorflow"
) -> Path:
    """Write a group for each layer; `leaf` is the pattern of its datasets' names. Attributes are bytes."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        root.attrs["layer_names"] = [layer.encode() for layer in [*layers, "avg_pool"]]
        root.attrs["backend"] = np.bytes_(backend)
        root.create_group("avg_pool").attrs["weight_names"] = np.empty(0)
        for layer, parts in layers.items():
            group = root.create_group(layer)
            names = {
                part: leaf.format(layer=layer, part=part, old=KERAS_1.get(part, part))
                for part in ORDER
                if part in parts
            }
            group.attrs["weight_names"] = [name.encode() for name in names.values()]
            for part, name in names.items():
                group[name] = parts[part]
        if whole:
            file.attrs["model_config"] = '{"class_name": "Functional"}'
            file["optimizer_weights/adam/conv1_conv/kernel/m:0"] = np.ones(3, np.float32)
    return path


def numbered(layers: Layers, *, step: int = 1) -> dict[str, str]:
    """Return the number of each layer within its class, in the order in which Keras' builder reaches the layers.

    In the first block of a stage the shortcut's convolution comes before the
    third one, since it does so in the graph.
    """

    def order(layer: str) -> tuple[int, ...]:
        match = re.match(r"conv(\d)_block(\d)_(\d)_", layer)
        if match is None:
            return (9,) if layer == "predictions" else (0,)
        stage, block, part = map(int, match.groups())
        return (stage, block, (1, 2, 0, 3).index(part))

    counts: dict[str, int] = {}
    found = {}
    for layer in sorted(layers, key=order):
        kind = "batch_normalization" if layer.endswith("_bn") else "conv2d" if layer.endswith("_conv") else "dense"
        count = counts.get(kind, 0)
        found[layer] = kind if count == 0 else f"{kind}_{count}"
        counts[kind] = count + step
    return found


def write_by_class(
    path: Path | io.BytesIO,
    layers: Layers,
    *,
    names: bool = True,
    root: str = "layers",
    step: int = 1,
    separator: str = "/",
) -> None:
    """Write numbered layers with numbered tensors, with or without the layers' own names beside them."""
    with h5py.File(path, "w") as file:
        for layer, group in numbered(layers, step=step).items():
            inner = file.create_group(separator.join([root, group, "vars"]))
            if names:
                inner.attrs["name"] = layer
            parts = [part for part in ORDER if part in layers[layer]]
            for i, part in enumerate(parts):
                inner[str(i)] = layers[layer][part]
        file.create_group(separator.join([root, "zero_padding2d", "vars"]))
        file["optimizer/vars/0"] = np.array(5)


def write_archive(path: Path, layers: Layers, *, compression: int = zipfile.ZIP_STORED, **form: object) -> Path:
    """Write a ``.keras`` archive."""
    weights = io.BytesIO()
    write_by_class(weights, layers, **form)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", '{"class_name": "os.system"}')
        archive.writestr("model.weights.h5", weights.getvalue())
    return path
