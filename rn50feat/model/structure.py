"""Describe the network: stages, blocks, and the role of every 1x1 convolution.

In: a variant. Out: a `Structure`. Everything is read from the module that
`network` builds, run once on torch's meta device, where tensors have shapes
but no values; nothing is a table of known numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rn50feat.model import network
from rn50feat.model.variants import Variant

SIDE = 224  # of the input image, in pixels


@dataclass(frozen=True)
class Convolution:
    """A convolution with its batch norm, by torchvision's names; ``side`` is the side of its square output.

    ``roles`` say what a 1x1 convolution does: reduce or restore the channels
    of a bottleneck, match those of a shortcut, and downsample if it also
    halves the map. Other kernels have no roles.
    """

    name: str
    kernel: int
    stride: int
    channels_in: int
    channels_out: int
    side: int
    parameters: int
    multiply_adds: int
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A bottleneck: three convolutions, and a shortcut around them.

    A projection shortcut is a convolution, ``projection``; an identity
    shortcut just reads every ``shortcut_stride``-th row and column.
    """

    stage: str
    number: int
    shortcut: str
    shortcut_stride: int
    convolutions: tuple[Convolution, ...]
    projection: Convolution | None

    @property
    def layers(self) -> tuple[Convolution, ...]:
        """All convolutions of the block, its shortcut's last."""
        return self.convolutions if self.projection is None else (*self.convolutions, self.projection)


@dataclass(frozen=True)
class Pool:
    """The max-pool of the stem; ``padding`` as in `Variant`, ``side`` is the side of its output."""

    kernel: int
    stride: int
    padding: str
    side: int


@dataclass(frozen=True)
class Structure:
    """A variant's network for an input image of ``side`` pixels.

    Parameters are the trainable ones: convolutions, and scales and shifts of
    batch norms. ``multiply_adds`` counts those of convolutions. Features
    bypass the classifier, fc, which is counted separately.
    """

    variant: str
    network: str
    epsilon: float
    side: int
    stem: Convolution
    pool: Pool
    blocks: tuple[Block, ...]
    features: int
    parameters: int
    multiply_adds: int
    parameters_with_fc: int
    multiply_adds_with_fc: int


def structure(variant: Variant) -> Structure:
    """Describe the network of `variant`; takes 0.2 s once torchvision is imported."""
    with torch.device("meta"):
        module: Any = network.build(variant).eval()
    sides = _sides(module)

    def convolution(name: str, *roles: str) -> Convolution:
        part, side = module.get_submodule(name), sides[name]
        norm = module.get_submodule(name.replace("conv", "bn").replace("downsample.0", "downsample.1"))
        weights = part.weight.numel()
        halving = ("downsample",) if roles and part.stride[0] > 1 else ()
        return Convolution(
            name=name,
            kernel=part.kernel_size[0],
            stride=part.stride[0],
            channels_in=part.in_channels,
            channels_out=part.out_channels,
            side=side,
            parameters=weights + sum(value.numel() for value in norm.parameters()),
            multiply_adds=weights * side * side,
            roles=(*roles, *halving),
        )

    def block(stage: int, number: int, part: Any) -> Block:
        name = f"layer{stage}.{number}"
        projected = isinstance(part.downsample, torch.nn.Sequential)
        return Block(
            stage=f"conv{stage + 1}_x",
            number=number + 1,
            shortcut="projection" if projected else "identity",
            shortcut_stride=1 if part.downsample is None or projected else part.downsample.stride,
            convolutions=(
                convolution(f"{name}.conv1", "reduce"),
                convolution(f"{name}.conv2"),
                convolution(f"{name}.conv3", "restore"),
            ),
            projection=convolution(f"{name}.downsample.0", "match") if projected else None,
        )

    stages = enumerate((module.layer1, module.layer2, module.layer3, module.layer4), 1)
    blocks = tuple(block(stage, number, part) for stage, parts in stages for number, part in enumerate(parts))
    stem = convolution("conv1")
    layers = [stem, *(layer for block in blocks for layer in block.layers)]
    parameters = sum(layer.parameters for layer in layers)
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    return Structure(
        variant=variant.name,
        network=variant.network,
        epsilon=variant.epsilon,
        side=SIDE,
        stem=stem,
        pool=Pool(module.maxpool.kernel_size, module.maxpool.stride, variant.pool_padding, sides["maxpool"]),
        blocks=blocks,
        features=module.fc.in_features,
        parameters=parameters,
        multiply_adds=multiply_adds,
        parameters_with_fc=parameters + sum(value.numel() for value in module.fc.parameters()),
        multiply_adds_with_fc=multiply_adds + module.fc.weight.numel(),
    )


def _sides(module: torch.nn.Module) -> dict[str, int]:
    """Find the output side of every convolution and of the max-pool by running the network on shapes."""
    sides: dict[str, int] = {}
    names = {part: name for name, part in module.named_modules()}

    def note(part: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        sides[names[part]] = output.shape[-1]

    for part in names:
        if isinstance(part, (torch.nn.Conv2d, torch.nn.MaxPool2d)):
            part.register_forward_hook(note)
    with torch.inference_mode():
        module(torch.zeros(1, 3, SIDE, SIDE, device="meta"))
    return sides
