"""Run the network in 8 bits with OpenVINO, and what 8 bits cannot represent in more.

In: crops, and the ranges of the maps between the network's layers. Out:
features. A value beyond its range is clipped, and a few images have values ten
times those of others: their rows would be far off. So the network also returns
the maxima of some maps, and the images that reach a range there are computed
again in bf16 or fp32. Measuring ranges is done here, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

from rn50feat.backends.contract import require_int8
from rn50feat.backends.openvino import OpenVinoBackend, convert
from rn50feat.errors import DeviceError
from rn50feat.images.provenance import Provenance

if TYPE_CHECKING:
    from rn50feat.backends.contract import Crops
    from rn50feat.model.network import Network

# A range is 1.25 times what 98 % of the images reach: wide enough for all but the images with exploding values, and
# narrow enough for 8 bits (with the largest values of 300 images, the median cosine with fp32 is 0.988, not 0.9998).
QUANTILE, MARGIN = 0.98, 1.25
REACHED = 0.998  # of a range: its last step
_LAYER = re.compile(r"(?:^|\.)((?:layer\d\.\d\.)?(?:conv\d|downsample\.0))/")
_WRITERS = ("Add", "Convolution")  # a convolution with its bias, and one without
# Blocks hand their first map only to the next convolution; looking at their results would cost half of the speed.
_GUARDED = re.compile(r"layer\d\.\d\.conv2 in")


class Int8Backend(OpenVinoBackend):
    """The quantized network, and the plain one for images beyond its ranges; a `Backend`."""

    def __init__(self, provenance: Provenance, load: Callable[[], Network], *, few: bool = False) -> None:
        """Prepare the network that ``provenance.quantization`` describes; raises what `OpenVinoBackend` does."""
        require_int8()
        load = cache(load)
        self._plain = OpenVinoBackend(replace(provenance, quantization=None), load, precision="auto", few=True)
        super().__init__(provenance, load, precision="auto", few=few)
        self._counting = Lock()

    def features(self, crops: Crops) -> NDArray[np.float32]:
        """Compute the features, float32 (n, 2048), of crops of the preprocessing's dtype, (n, 224, 224, 3)."""
        rows, used = self._outputs(crops)
        beyond = (used >= REACHED).any(axis=1)
        if beyond.any():
            rows[beyond] = self._plain.features(crops[beyond])
            with self._counting:
                self.recomputed += int(beyond.sum())
        return rows

    def _model(self, network: Network, provenance: Provenance) -> Any:
        assert provenance.quantization is not None
        return _quantized(super()._model(network, provenance), provenance.quantization.ranges)


class Maxima(OpenVinoBackend):
    """The network's largest values, instead of its features."""

    def __init__(self, provenance: Provenance, load: Callable[[], Network]) -> None:
        super().__init__(replace(provenance, weights_sha256=""), load, precision="auto", few=True)

    def _path(self, sha256: str, provenance: Provenance, *, few: bool) -> None:
        """Keep no compiled network: it is used once."""

    def ranges(self, crops: Crops) -> tuple[float, ...]:
        """Measure the ranges on crops, one for each of `_maps`."""
        found = np.quantile(self.features(crops), QUANTILE, axis=0) * MARGIN
        return tuple(float(value) for value in np.maximum(found, 1e-6).astype(np.float32))

    def _model(self, network: Network, provenance: Provenance) -> Any:
        model = convert(network, provenance.preprocessing)
        maxima = [_largest(ops.abs(value)) for value in _maps(model).values()]
        return openvino.Model([_joined(maxima)], model.get_parameters())


def _maps(model: Any) -> dict[str, Any]:
    """Find the outputs in `model` to quantize, in an order that does not depend on OpenVINO.

    These are the inputs of the convolutions and of the additions at the ends
    of the blocks, each named after the first convolution that reads it or, if
    there is none, that writes it.
    """
    found: dict[Any, str] = {}

    def add(output: Any, name: str) -> None:
        while output.get_node().get_type_name() == "MaxPool":
            output = output.get_node().input_value(0)
        node = output.get_node().get_friendly_name()
        outputs[node] = output
        found[node] = min(found.get(node, name), name)

    outputs: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            add(node.input_value(0), f"{_layer(node)} in")
        elif node.get_type_name() == "Add":
            both = [node.input_value(i) for i in (0, 1)]
            if all(_is_map(value) for value in both):
                for value in both:
                    writer = value.get_node()
                    if writer.get_type_name() in _WRITERS:
                        add(value, f"{_layer(writer)} out")
    return {found[node]: outputs[node] for node in sorted(found, key=found.__getitem__)}


def _is_map(value: Any) -> bool:
    return value.get_node().get_type_name() in (*_WRITERS, "Relu", "MaxPool")


def _layer(node: Any) -> str:
    """Return torchvision's name of the convolution that a node comes from."""
    match = _LAYER.search(node.get_friendly_name())
    if match is None:
        raise DeviceError(
            f"this OpenVINO ({openvino.__version__}) names layers differently:"
            " use another version, or leave out --precision int8"
        )
    return match[1]


def _quantized(model: Any, ranges: tuple[float, ...]) -> Any:
    """Quantize the maps of `model` to their `ranges`, and the weights to those of each channel.

    The second output, (n, maps), is the share of its range that the largest value of each guarded map takes.
    """
    maps = _maps(model)
    if len(maps) != len(ranges):
        raise DeviceError(f"the store has {len(ranges)} ranges for {len(maps)} maps: upgrade rn50feat")
    used = []
    for (name, value), most in zip(maps.items(), ranges):
        signed = value.get_node().get_type_name() != "Relu"
        low, high = np.float32(-most * 128 / 127 if signed else 0), np.float32(most)
        readers = list(value.get_target_inputs())
        quantized = ops.fake_quantize(value, low, high, low, high, 256)
        for reader in readers:
            reader.replace_source_output(quantized.output(0))
        if _GUARDED.fullmatch(name):
            used.append(ops.divide(_largest(quantized), high))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            weights = node.input_value(1)
            most = np.abs(weights.get_node().data).max((1, 2, 3), keepdims=True).astype(np.float32)
            most[most == 0] = 1
            quantized = ops.fake_quantize(weights, -most, most, -most, most, 255)
            node.input(1).replace_source_output(quantized.output(0))
    features = model.output(0).get_node().input_value(0)
    return openvino.Model([features, _joined(used)], model.get_parameters())


def _largest(value: Any) -> Any:
    return ops.reduce_max(value, np.array([1, 2, 3]), True)


def _joined(values: list[Any]) -> Any:
    """Join values of shape (n, 1, 1, 1) to (n, values)."""
    return ops.reshape(ops.concat(values, 1), np.array([0, -1]), True).output(0)
