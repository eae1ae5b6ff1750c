"""Real networks with random weights."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import published
import pytest
import torch

from rn50feat import EngineOptions
from rn50feat.backends.torch import TorchBackend
from rn50feat.images.provenance import Preprocessing
from rn50feat.model import network, weights

FP32 = EngineOptions(device="cpu", precision="fp32", backend="torch")
OPENVINO = pytest.mark.skipif(not find_spec("openvino"), reason="needs the openvino extra")


def backend(precision: str, device: str = "cpu") -> TorchBackend:
    return TorchBackend(network.load(weights.find("random")), Preprocessing(), device=device, precision=precision)


def trained(seed: int) -> tuple[published.Tensors, published.Tensors]:
    """Return random tensors of which features neither vanish nor explode, with uneven statistics, and biases."""
    found = published.state(seed, classifier=False)
    for name, value in found.items():
        if value.ndim == 4:
            value *= np.float32((2 / np.prod(value.shape[1:])) ** 0.5)
        elif name.endswith("running_var"):
            np.clip(value, 0.3, 3, out=value)
        elif name.endswith(("running_mean", ".bias")):
            value *= np.float32(0.3)
        else:
            found[name] = np.clip(np.abs(value), 0.3, 1.2)
    return found, {name: bias * np.float32(0.3) for name, bias in published.biases(found).items()}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def distance(module: torch.nn.Module, whole: torch.nn.Module) -> float:
    """Return the relative L2 between a network's features and those of a ResNet50 with its classifier."""
    pictures = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    body = torch.nn.Sequential(*list(whole.children())[:-1], torch.nn.Flatten())
    with torch.no_grad():
        expected = body(pictures)
        return float((module(pictures) - expected).norm() / expected.norm())
