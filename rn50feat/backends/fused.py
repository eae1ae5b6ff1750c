"""Compute each convolution with its bias, the shortcut's addition and the ReLU in one call.

In: the folded ResNet50 of `network`. Out: a module with the same features
that calls oneDNN on the CPU and cuDNN on CUDA, without writing intermediate
results to memory and reading them back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv2d, Module, Sequential

logger = logging.getLogger(__name__)

# (images, convolution, tensor to add or None, whether a ReLU follows) -> images
Convolve = Callable[[Tensor, Conv2d, "Tensor | None", bool], Tensor]


class Fused(Module):
    """A ResNet50 without classifier and batch norms whose convolutions call one library."""

    def __init__(self, resnet: Module, start: Callable[[], Convolve]) -> None:
        """Run `resnet` with the function that `start` returns for each batch, whose memory belongs to that batch."""
        super().__init__()
        self.resnet = resnet
        self._start = start

    def forward(self, images: Tensor) -> Tensor:
        net: Any = self.resnet
        convolve = self._start()
        images = net.maxpool(convolve(images, net.conv1, None, True))
        for block in chain(net.layer1, net.layer2, net.layer3, net.layer4):
            shortcut = _shortcut(images, block.downsample, convolve)
            images = convolve(images, block.conv1, None, True)
            images = convolve(images, block.conv2, None, True)
            images = convolve(images, block.conv3, shortcut, True)
        features: Tensor = net.avgpool(images).flatten(1)
        return features


def _shortcut(images: Tensor, part: Any, convolve: Convolve) -> Tensor:
    """Compute a block's shortcut: its input, pooled for slim's halving blocks, or projected."""
    if part is None:
        return images
    pooled = not isinstance(part, Sequential)
    shortcut: Tensor = part(images) if pooled else convolve(images, part[0], None, False)
    return shortcut


def fused_on_cpu(resnet: Module, dtype: torch.dtype) -> Module:
    """Fuse `resnet` with oneDNN's calls; return it unchanged if the processor or torch has none for `dtype`.

    20 to 30 percent faster in bf16 and fp32 on 2 Zen cores.
    """
    module = Fused(resnet, lambda: _onednn)
    try:
        module(torch.zeros(1, 3, 64, 64, dtype=dtype).to(memory_format=torch.channels_last))
    except (RuntimeError, AttributeError) as error:  # no engine for it; a torch without oneDNN
        logger.info("convolutions are not fused on the CPU: %s", error)
        return resnet
    return module


def fused_on_cuda(resnet: Module) -> Module:
    """Fuse `resnet` with cuDNN's calls: 27,002 instead of 12,117 images/s in fp16 on an H100, in batches of 256.

    A card or a cuDNN without these calls raises only when the module is called.
    """
    return Fused(resnet, CuDNN)


def plain(images: Tensor, part: Conv2d, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Compute with plain torch what the libraries' calls compute."""
    result: Tensor = part(images)
    if shortcut is not None:
        result = result + shortcut
    return result.relu_() if relu else result


def _onednn(images: Tensor, part: Conv2d, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Call the operators that torch's own compiler emits for the CPU; `shortcut` is overwritten."""
    geometry: Any = (part.padding, part.stride, part.dilation, part.groups)
    if shortcut is None:
        unary = torch.ops.mkldnn._convolution_pointwise.default
        return unary(images, part.weight, part.bias, *geometry, "relu" if relu else "none", [], "")  # type: ignore[no-any-return]
    binary = torch.ops.mkldnn._convolution_pointwise_.binary
    return binary(shortcut, images, part.weight, part.bias, *geometry, "add", 1.0, "relu", [], "")  # type: ignore[no-any-return]


class CuDNN:
    """cuDNN's convolution with bias, addition and ReLU, for one batch.

    If there is nothing to add, this adds zeros: `cudnn_convolution_relu` adds
    its own uninitialised output times 0, and a NaN in that memory gets
    through (seen on an H100 with torch 2.11 in all precisions).
    """

    def __init__(self) -> None:
        self._zeros: Tensor | None = None  # filled on the stream of the batch that reads them

    def __call__(self, images: Tensor, part: Conv2d, shortcut: Tensor | None, relu: bool) -> Tensor:
        # The calls always end with a ReLU, so projections are plain convolutions; so is the stem, because a 7x7 kernel
        # over 3 channels is 17 times slower in some versions (pytorch issue 68506).
        if not relu or part.kernel_size == (7, 7):
            return plain(images, part, shortcut, relu)
        added = self._zeros_for(images, part) if shortcut is None else shortcut
        geometry: Any = (part.stride, part.padding, part.dilation, part.groups)
        return torch.cudnn_convolution_add_relu(images, part.weight, added, 1.0, part.bias, *geometry)

    def _zeros_for(self, images: Tensor, part: Conv2d) -> Tensor:
        """Return zeros in the shape and layout of the convolution's output."""
        (kernel, _), (stride, _), padding = part.kernel_size, part.stride, int(part.padding[0])
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in images.shape[2:])
        shape = (len(images), height, width, part.out_channels)
        size = len(images) * height * width * part.out_channels
        if self._zeros is None or self._zeros.numel() < size:
            self._zeros = images.new_zeros(size)
        return self._zeros[:size].view(shape).permute(0, 3, 1, 2)
