"""The networks of the note and their preprocessing, written from their publications.

With torch.nn.functional and numpy alone, in the form in which Keras
(keras_applications/resnet50.py) and TF-slim (nets/resnet_v1.py,
preprocessing/vgg_preprocessing.py) publish them; nothing here comes from
`rn50feat`, so that neither can hide a mistake of the other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

Tensors = dict[str, np.ndarray]


def kernel(value: np.ndarray) -> torch.Tensor:
    """Return an HWIO kernel as torch has it."""
    return torch.from_numpy(np.ascontiguousarray(value.transpose(3, 2, 0, 1)))


def norm(x: torch.Tensor, values: Tensors, epsilon: float) -> torch.Tensor:
    mean, variance, gamma, beta = (
        torch.from_numpy(np.asarray(values[name], np.float32))
        for name in ("moving_mean", "moving_variance", "gamma", "beta")
    )
    return functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


def slim(x: torch.Tensor, variables: Tensors) -> torch.Tensor:
    """Return the pooled features of TF-slim's resnet_v1_50: the stride in the last unit of a block."""

    def layer(x: torch.Tensor, scope: str, stride: int = 1, relu: bool = True) -> torch.Tensor:
        weights = kernel(variables[f"{scope}/weights"])
        if stride > 1 and weights.shape[-1] > 1:  # conv2d_same
            total = weights.shape[-1] - 1
            begin, end = total // 2, total - total // 2
            x = functional.conv2d(functional.pad(x, (begin, end, begin, end)), weights, stride=stride)
        else:
            x = functional.conv2d(x, weights, stride=stride, padding=0 if stride > 1 else "same")
        prefix = f"{scope}/BatchNorm/"
        x = norm(x, {n.removeprefix(prefix): v for n, v in variables.items() if n.startswith(prefix)}, 1.001e-5)
        return functional.relu(x) if relu else x

    def bottleneck(x: torch.Tensor, scope: str, depth: int, stride: int) -> torch.Tensor:
        if x.shape[1] == depth:
            shortcut = x if stride == 1 else functional.max_pool2d(x, 1, stride)  # subsample
        else:
            shortcut = layer(x, f"{scope}/shortcut", stride, relu=False)
        residual = layer(x, f"{scope}/conv1")
        residual = layer(residual, f"{scope}/conv2", stride)
        residual = layer(residual, f"{scope}/conv3", relu=False)
        return functional.relu(shortcut + residual)

    x = layer(x, "resnet_v1_50/conv1", 2)
    x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-np.inf), 3, 2)  # 'SAME' on 112
    for block, (depth, units, stride) in enumerate(((256, 3, 2), (512, 4, 2), (1024, 6, 2), (2048, 3, 1)), 1):
        for unit in range(1, units + 1):
            scope = f"resnet_v1_50/block{block}/unit_{unit}/bottleneck_v1"
            x = bottleneck(x, scope, depth, stride if unit == units else 1)
    return x.mean(dim=(2, 3))


def keras_old(x: torch.Tensor, layers: dict[str, Tensors], *, pool_padding: int) -> torch.Tensor:
    """Return the pooled features of Keras' ResNet50 of before 2.2.5: strides on the first 1x1, biases, eps 1e-3."""

    def layer(x: torch.Tensor, conv: str, bn: str, stride: int = 1, padding: int = 0) -> torch.Tensor:
        bias = torch.from_numpy(layers[conv]["bias"])
        x = functional.conv2d(x, kernel(layers[conv]["kernel"]), bias, stride=stride, padding=padding)
        return norm(x, layers[bn], 1e-3)

    x = functional.relu(layer(functional.pad(x, (3, 3, 3, 3)), "conv1", "bn_conv1", 2))
    x = functional.max_pool2d(functional.pad(x, (pool_padding,) * 4), 3, 2)
    for stage, blocks in ((2, "abc"), (3, "abcd"), (4, "abcdef"), (5, "abc")):
        for block in blocks:
            stride = 2 if block == "a" and stage > 2 else 1
            name = f"{stage}{block}_branch"
            shortcut = layer(x, f"res{name}1", f"bn{name}1", stride) if block == "a" else x
            y = functional.relu(layer(x, f"res{name}2a", f"bn{name}2a", stride))
            y = functional.relu(layer(y, f"res{name}2b", f"bn{name}2b", padding=1))
            x = functional.relu(layer(y, f"res{name}2c", f"bn{name}2c") + shortcut)
    return x.mean(dim=(2, 3))


def vgg_preprocessing(picture: np.ndarray) -> np.ndarray:
    """Return slim's input of an RGB picture, (height, width, 3) uint8: float32 of shape (224, 224, 3)."""
    height, width = picture.shape[:2]
    scale = np.float32(256) / np.float32(width if height > width else height)
    new = [int(np.rint(np.float32(side) * scale)) for side in (height, width)]
    resized = picture.astype(np.float32)
    for axis, (length, size) in enumerate(zip((height, width), new)):
        ratio = np.float32(length) / np.float32(size)
        ends = []
        for i in range(size):
            place = np.float32(i) * ratio
            low = int(place)
            ends.append((low, min(low + 1, length - 1), place - np.float32(low)))
        low, high, share = (np.array(column) for column in zip(*ends))
        share = share.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        first, second = np.take(resized, low, axis), np.take(resized, high, axis)
        resized = first + (second - first) * share
    top, left = (new[0] - 224) // 2, (new[1] - 224) // 2
    crop = resized[top : top + 224, left : left + 224]
    return crop - np.array([123.68, 116.78, 103.94], np.float32)
