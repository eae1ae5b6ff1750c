"""Read the weights of TF-slim's ``resnet_v1_50`` from its checkpoint.

In: a TensorFlow checkpoint. Out: torchvision's tensors. What a training run
adds to the network's own variables (steps, means, optimizer slots) is ignored;
variables of other layers are refused.
"""

from __future__ import annotations

from pathlib import Path

from rn50feat.errors import WeightsError
from rn50feat.model.weight_files import checkpoint
from rn50feat.model.weight_files.translation import Translated, shown_name, translate

# The names of variables in slim's layers; others are not part of the network.
_LEAVES = {"weights", "biases", "gamma", "beta", "moving_mean", "moving_variance"}
_INNER = "block1/unit_1/bottleneck_v1/conv1/weights"  # shows under which scope the network was built


def read(path: Path) -> Translated:
    """Read the tensors of a slim checkpoint; raise `WeightsError` if they are not a resnet_v1_50's."""
    variables = {name: s for name, s in checkpoint.read(path).items() if name.rpartition("/")[2] in _LEAVES}
    scopes = [name.removesuffix(_INNER) for name in variables if name.endswith(_INNER)]
    if len(scopes) > 1:
        raise WeightsError(
            f"{path} holds {len(scopes)} networks, {shown_name(scopes[0])} and {shown_name(scopes[1])}:"
            " use a checkpoint of one"
        )
    return translate(path, "slim", variables, scope=scopes[0] if scopes else "resnet_v1_50/")
