"""Build the network: torchvision's ResNet50 up to its average pool.

In: weights. Out: a torch module from normalised pictures, (n, 3, 224, 224),
to features, (n, 2048), and the SHA-256 of the weights that it really has.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torchvision

from rn50feat import weights as weights_files
from rn50feat.errors import WeightsError
from rn50feat.weights import Weights

if TYPE_CHECKING:
    from rn50feat.weights import StateDict

WIDTH = 2048
# What a state dict may hold or lack beside the layers up to the average pool.
_CLASSIFIER = {"fc.weight", "fc.bias"}


@dataclass(frozen=True)
class Network:
    """ResNet50 in evaluation mode without its classifier, float32 on the CPU."""

    module: torch.nn.Module
    sha256: str


def load(weights: Weights, *, progress: bool = False) -> Network:
    """Return the network with `weights`, downloading them where needed.

    Random weights are those of ``torch.manual_seed(seed); resnet50()``, and
    their SHA-256 is that of the tensors in the order of their names. Raises
    `WeightsError` when the weights cannot be had or are no ResNet50's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.seed)
        module = torchvision.models.resnet50(weights=None)
    module.fc = torch.nn.Identity()
    if weights.path is None:
        sha256 = _hash(module.state_dict())
    else:
        state = weights_files.read(weights, progress=progress)
        _check(state, module.state_dict(), weights)
        module.load_state_dict({name: state[name] for name in module.state_dict() if name in state}, strict=False)
        sha256 = weights_files.hash_file(weights.path)
    return Network(module.eval().requires_grad_(False), sha256)


def _check(state: StateDict, expected: StateDict, weights: Weights) -> None:
    """Raise `WeightsError` naming the first tensor that is missing, misshapen or one too many."""
    for name, tensor in expected.items():
        if name not in state:
            if name.endswith(".num_batches_tracked"):  # not used in evaluation, and absent from old files
                continue
            raise _not_resnet50(weights, f"{name} is missing")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            raise _not_resnet50(weights, f"{name} has shape {shapes}")
        if not torch.isfinite(state[name]).all():
            raise _not_resnet50(weights, f"{name} holds values that are not finite")
    for name in state:
        if name not in expected and name not in _CLASSIFIER:
            raise _not_resnet50(weights, f"{name} is one too many")


def _not_resnet50(weights: Weights, reason: str) -> WeightsError:
    return WeightsError(
        f"{weights.path} is not a ResNet50 of torchvision: {reason}: give the state dict of torchvision's resnet50"
    )


def _hash(state: StateDict) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
