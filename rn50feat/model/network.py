"""Build the network: a variant of torchvision's ResNet50 up to its average pool.

In: weights and a variant. Out: a torch module from normalised images,
(n, 3, 224, 224), to features, (n, 2048), and the SHA-256 of the weights that
were actually loaded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
import torchvision
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rn50feat.errors import WeightsError
from rn50feat.images.provenance import Preprocessing
from rn50feat.model import weights as weights_files
from rn50feat.model.variants import TORCHVISION, Variant
from rn50feat.model.weights import Weights

if TYPE_CHECKING:
    from rn50feat.model.tensors import StateDict

WIDTH = 2048
# What a state dict may have or lack in addition to the layers up to the average pool.
_CLASSIFIER = {"fc.weight", "fc.bias"}


@dataclass(frozen=True)
class Network:
    """ResNet50 for inference: without its classifier, batch norms folded, float32 on the CPU."""

    module: torch.nn.Module
    sha256: str


class Normalized(torch.nn.Module):
    """A network that takes crops, uint8 or float32 of shape (n, 224, 224, 3), and normalises them itself."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, module: torch.nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.module = module
        # ToTensor's x / 255 and Normalize's (x - mean) / std as one multiplication and one addition; if white is 255,
        # (and std 1), the multiplication is by exactly 1.
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        self.register_buffer("scale", preprocessing.white / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        images = crops.permute(0, 3, 1, 2) * self.scale + self.shift
        dtype = next(self.module.parameters()).dtype
        features: torch.Tensor = self.module(images.to(dtype)).float()
        return features


def load(weights: Weights, variant: Variant = TORCHVISION) -> Network:
    """Build the network of `variant` with `weights`; raises the errors of `state`.

    The SHA-256 of random weights is computed over the tensors in the order of their names.
    """
    tensors = state(weights, variant)
    body = _empty(variant)
    kept = {name: tensors[name] for name in body.state_dict() if name in tensors}
    body.load_state_dict(kept, strict=False, assign=True)
    sha256 = weights_files.hash_file(weights.path) if weights.path else _hash(kept)
    return Network(_folded(body.eval().requires_grad_(False)), sha256)


def state(weights: Weights, variant: Variant) -> StateDict:
    """Load the tensors of `weights` under torchvision's names, float32, complete for `variant`.

    Random weights are those of ``torch.manual_seed(seed); resnet50()``.
    Raises `WeightsError` if the weights are not available, not a ResNet50's,
    or another variant's.
    """
    if weights.path is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights.seed)
            return dict(torchvision.models.resnet50(weights=None).state_dict())
    held = weights_files.read(weights)
    weights_files.require(weights, held.claims, variant)
    _check(held.tensors, _empty(variant).state_dict(), weights)
    return held.tensors


def _empty(variant: Variant) -> torch.nn.Module:
    """Build a network without classifier and without values, on torch's meta device, which takes almost no time."""
    with torch.device("meta"):
        module = build(variant)
    module.fc = torch.nn.Identity()
    return module


def build(variant: Variant) -> torch.nn.Module:
    """Build torchvision's ResNet50, with its classifier and arbitrary weights, as `variant`.

    Only attributes of its layers change; ``forward`` is torchvision's own.
    Compared with Keras 2.1.6 to 3.15 and slim on TensorFlow 1.4 to 2.21, rows
    differ by 1.1e-6 to 3.3e-6 (relative L2), the rounding of float32.
    """
    module: Any = torchvision.models.resnet50(weights=None)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps = variant.epsilon
    if variant.pool_padding != "all sides":
        # After a ReLU the padding value makes no difference: a window over the edge is like one with zeros.
        module.maxpool = torch.nn.MaxPool2d(3, 2, padding=0, ceil_mode=variant.pool_padding == "end")
    stages = (module.layer1, module.layer2, module.layer3, module.layer4)
    for before, stage in pairwise(stages):
        first, last = stage[0], before[-1]
        if variant.halving == "1x1 of the first block":
            first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
        elif variant.halving == "3x3 of the last block":
            last.conv2.stride, first.conv2.stride, first.downsample[0].stride = (2, 2), (1, 1), (1, 1)
            last.downsample = torch.nn.MaxPool2d(1, 2)  # the identity shortcut for every second row and column
    return cast(torch.nn.Module, module)


def _folded(module: torch.nn.Module) -> torch.nn.Module:
    """Fold each batch norm into the convolution before it: 28.0 instead of 20.6 images/s in fp32 on 2 Zen cores.

    Rows change by 4e-7. By torchvision's names ``bn1`` follows ``conv1`` and
    so on, in the stem and in every block; a projection shortcut is a
    convolution and its batch norm.
    """
    parts: list[Any] = list(module.modules())
    for part in parts:
        for name in ("1", "2", "3"):
            if hasattr(part, f"bn{name}"):
                convolution, norm = getattr(part, f"conv{name}"), getattr(part, f"bn{name}")
                setattr(part, f"conv{name}", fuse_conv_bn_eval(convolution, norm))
                setattr(part, f"bn{name}", torch.nn.Identity())
        if isinstance(getattr(part, "downsample", None), torch.nn.Sequential):
            part.downsample = torch.nn.Sequential(fuse_conv_bn_eval(*part.downsample))
    return module


def _check(state: StateDict, expected: StateDict, weights: Weights) -> None:
    """Raise `WeightsError` naming the first tensor that is missing, unexpected or of the wrong shape."""
    for name, tensor in expected.items():
        if name not in state:
            if name.endswith(".num_batches_tracked"):  # not used in evaluation, and absent from old files
                continue
            raise _not_resnet50(weights, f"{name} is missing")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            raise _not_resnet50(weights, f"{name} has shape {shapes}")
        if not torch.isfinite(state[name]).all():
            raise _not_resnet50(weights, f"{name} has NaN or infinite values")
        if name.endswith("running_var") and (state[name] < 0).any():
            raise _not_resnet50(weights, f"{name} has negative values, which no variance has")
    for name in state:
        if name not in expected and name not in _CLASSIFIER:
            raise _not_resnet50(weights, f"{name} is unexpected")


def _not_resnet50(weights: Weights, reason: str) -> WeightsError:
    return WeightsError(
        f"{weights.path} is not torchvision's ResNet50 ({reason}): use a state dict of torchvision's resnet50"
    )


def _hash(state: StateDict) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
