"""Map the names of ResNet50's tensors between Keras, TF-slim and torchvision.

In: the name of a variant. Out: the tensors that its file must hold: name and
shape in the file, and name in torchvision. Variants: "keras" (layers
such as ``conv2_block1_1_conv``), "keras-old" (``res2a_branch2a``, up to Keras
2.2.4) and "slim" (``resnet_v1_50/block1/unit_1/bottleneck_v1/conv1``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Naming = Literal["keras", "keras-old", "slim"]
Shape = tuple[int, ...]

WIDTH = 64  # channels of the first convolution; all others are multiples of it
CLASSES = 1000
ARCHIVED = "model.weights.h5"  # the weights in a .keras archive
CLASSIFIER: Mapping[Naming, str] = {"keras": "predictions", "keras-old": "fc1000", "slim": "logits"}
# The tensors of a batch norm by torchvision's names, and by the names of the other two.
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


@dataclass(frozen=True)
class Unit:
    """A convolution and its batch norm: its two names in each place, and the shape of the kernel (HWIO)."""

    torchvision: tuple[str, str]
    layers: Mapping[Naming, tuple[str, str]]
    kernel: Shape


@dataclass(frozen=True)
class Expected:
    """A tensor of a file: name and shape there, and name in torchvision; or a bias to subtract from that one."""

    source: str
    shape: Shape
    name: str
    subtracted: bool = False


def units() -> Iterator[Unit]:
    """Yield the 53 units in Keras's order: 1, 2, 0 (the shortcut), 3 in a stage's first block."""
    stem: dict[Naming, tuple[str, str]] = {
        "keras": ("conv1_conv", "conv1_bn"),
        "keras-old": ("conv1", "bn_conv1"),
        "slim": ("conv1", "conv1/BatchNorm"),
    }
    yield Unit(("conv1", "bn1"), stem, (7, 7, 3, WIDTH))
    inputs = WIDTH
    for stage, blocks in enumerate((3, 4, 6, 3), 2):
        narrow = WIDTH << (stage - 2)
        for block in range(1, blocks + 1):
            kernels = {1: (1, 1, inputs, narrow), 2: (3, 3, narrow, narrow), 3: (1, 1, narrow, 4 * narrow)}
            if block == 1:
                kernels = {1: kernels[1], 2: kernels[2], 0: (1, 1, inputs, 4 * narrow), 3: kernels[3]}
            for part, kernel in kernels.items():
                yield _unit(stage, block, part, kernel)
            inputs = 4 * narrow


def _unit(stage: int, block: int, part: int, kernel: Shape) -> Unit:
    """Build the unit of a block's convolution 1, 2 or 3, or 0 for its projection shortcut."""
    here = f"layer{stage - 1}.{block - 1}"
    keras = f"conv{stage}_block{block}_{part}"
    old = f"{stage}{'abcdef'[block - 1]}_branch" + ("1", "2a", "2b", "2c")[part]
    slim = f"block{stage - 1}/unit_{block}/bottleneck_v1/" + (f"conv{part}" if part else "shortcut")
    return Unit(
        (f"{here}.conv{part}", f"{here}.bn{part}") if part else (f"{here}.downsample.0", f"{here}.downsample.1"),
        {
            "keras": (f"{keras}_conv", f"{keras}_bn"),
            "keras-old": (f"res{old}", f"bn{old}"),
            "slim": (slim, f"{slim}/BatchNorm"),
        },
        kernel,
    )


def expected(variant: Naming, *, classifier: bool, scope: str = "") -> list[Expected]:
    """List the tensors that a file holds, with or without its classifier; `scope` precedes each name there."""
    kernel, bias = ("weights", "biases") if variant == "slim" else ("kernel", "bias")
    found = []
    for unit in units():
        (here_conv, here_norm), (conv, norm) = unit.torchvision, unit.layers[variant]
        channels = unit.kernel[-1:]
        found.append(Expected(f"{scope}{conv}/{kernel}", unit.kernel, f"{here_conv}.weight"))
        found += [Expected(f"{scope}{norm}/{leaf}", channels, f"{here_norm}.{name}") for name, leaf in _NORM.items()]
        if variant != "slim":  # the batch norm subtracts the mean, so the bias can be subtracted from that
            found.append(Expected(f"{scope}{conv}/{bias}", channels, f"{here_norm}.running_mean", subtracted=True))
    if classifier:
        layer, shape = scope + CLASSIFIER[variant], (32 * WIDTH, CLASSES)
        found.append(Expected(f"{layer}/{kernel}", (1, 1, *shape) if variant == "slim" else shape, "fc.weight"))
        found.append(Expected(f"{layer}/{bias}", shape[1:], "fc.bias"))
    return found
