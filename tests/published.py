"""The tensors of a ResNet50 as torchvision, Keras and slim call them: random ones, to be written into files.

Written from the published tables of names, apart from `rn50feat.model.weight_files`, so
that neither can hide a mistake of the other.
"""

from __future__ import annotations

import re

import numpy as np
import torch
import torchvision

Tensors = dict[str, np.ndarray]
BLOCKS = "abcdef"


def state(seed: int = 0, *, narrower: int = 1, classifier: bool = True) -> Tensors:
    """Return random tensors under torchvision's names, with channels fewer by a factor where tests need no more."""
    rng = np.random.default_rng(seed)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in torchvision.models.resnet50().state_dict().items()}
    made = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked") or (name.startswith("fc.") and not classifier):
            continue
        small = [size if size < 16 or size == 1000 else size // narrower for size in shape]
        made[name] = rng.standard_normal(small, np.float32)
        if name.endswith("running_var"):
            made[name] = made[name] ** 2 + np.float32(0.1)
    return made


def biases(tensors: Tensors, seed: int = 1) -> Tensors:
    """Return a random bias for each convolution, by its name in torchvision."""
    rng = np.random.default_rng(seed)
    kernels = {name: value for name, value in tensors.items() if value.ndim == 4}
    return {
        name.removesuffix(".weight"): rng.standard_normal(len(kernel), np.float32) for name, kernel in kernels.items()
    }


def folded(tensors: Tensors, conv_biases: Tensors) -> Tensors:
    """Return the tensors of the same function without the biases."""
    result = dict(tensors)
    for conv, bias in conv_biases.items():
        mean = norm_of(conv) + ".running_mean"
        result[mean] = result[mean] - bias
    return result


def norm_of(conv: str) -> str:
    return conv.replace("conv", "bn") if "conv" in conv else conv.replace("downsample.0", "downsample.1")


def keras_layer(module: str, *, old: bool = False) -> str:
    """Return Keras' name of a layer, of today or up to 2.2.4."""
    if module == "fc":
        return "fc1000" if old else "predictions"
    if module in ("conv1", "bn1"):
        return (
            {"conv1": "conv1", "bn1": "bn_conv1"}[module] if old else {"conv1": "conv1_conv", "bn1": "conv1_bn"}[module]
        )
    stage, block, part = re.fullmatch(r"layer(\d)\.(\d)\.(.+)", module).groups()
    number = 0 if part.startswith("downsample") else int(part[-1])
    norm = part.startswith("bn") or part == "downsample.1"
    if old:
        return f"{'bn' if norm else 'res'}{int(stage) + 1}{BLOCKS[int(block)]}_branch{['1', '2a', '2b', '2c'][number]}"
    return f"conv{int(stage) + 1}_block{int(block) + 1}_{number}_{'bn' if norm else 'conv'}"


def slim_layer(module: str) -> str:
    """Return slim's scope of a convolution, a batch norm or the classifier."""
    if module == "fc":
        return "logits"
    if module in ("conv1", "bn1"):
        return "conv1" if module == "conv1" else "conv1/BatchNorm"
    stage, block, part = re.fullmatch(r"layer(\d)\.(\d)\.(.+)", module).groups()
    unit = f"block{stage}/unit_{int(block) + 1}/bottleneck_v1"
    inner = {"downsample.0": "shortcut", "downsample.1": "shortcut/BatchNorm"}.get(
        part, part if part.startswith("conv") else f"conv{part[-1]}/BatchNorm"
    )
    return f"{unit}/{inner}"


LEAVES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def keras_layers(tensors: Tensors, conv_biases: Tensors, *, old: bool = False) -> dict[str, Tensors]:
    """Return the tensors of each layer of Keras in Keras' layout, in the order in which it makes them."""
    layers: dict[str, Tensors] = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        layer = layers.setdefault(keras_layer(module, old=old), {})
        if module == "fc":
            layer["kernel" if leaf == "weight" else "bias"] = value.T
        elif value.ndim == 4:
            layer["kernel"], layer["bias"] = value.transpose(2, 3, 1, 0), conv_biases[module]
        else:
            layer[LEAVES[leaf]] = value
    return layers


def slim_variables(tensors: Tensors, scope: str = "resnet_v1_50") -> Tensors:
    """Return slim's variables by their names in a checkpoint."""
    variables = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        layer = f"{scope}/{slim_layer(module)}" if scope else slim_layer(module)
        if module == "fc":
            variables[f"{layer}/weights" if leaf == "weight" else f"{layer}/biases"] = (
                value.T[None, None] if leaf == "weight" else value
            )
        elif value.ndim == 4:
            variables[f"{layer}/weights"] = value.transpose(2, 3, 1, 0)
        else:
            variables[f"{layer}/{LEAVES[leaf]}"] = value
    return variables


def leftovers(scope: str = "resnet_v1_50") -> dict[str, np.ndarray]:
    """Return what a training run leaves in a checkpoint beside the network."""
    return {
        "global_step": np.array(7, np.int64),
        f"{scope}/mean_rgb": np.array([123.68, 116.78, 103.94], np.float32),
        f"{scope}/conv1/weights/Momentum": np.ones((7, 7, 3, 4), np.float32),
        f"{scope}/conv1/BatchNorm/moving_mean/local_step": np.array(3, np.int32),
        "beta1_power": np.array(0.9, np.float32),
    }


def same(found: Tensors, expected: Tensors) -> None:
    """Assert that two sets of tensors are equal, bit for bit."""
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)
