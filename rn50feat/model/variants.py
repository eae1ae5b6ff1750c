"""List the published variants of ResNet50 and their differences.

In: a name, as ``--variant`` takes it or as a provenance record has it. Out: a
`Variant`: where its stages halve the map, its batch norms' epsilon, its
max-pool, and the preprocessing that its weights were trained with. `network`
builds all of them from one torchvision class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rn50feat.errors import ProvenanceError, WeightsError


@dataclass(frozen=True)
class Variant:
    """A variant of ResNet50.

    ``halving`` is the convolution whose stride 2 halves the map, three times
    in the network: the 3x3 or the first 1x1 of a stage's first block, or the
    3x3 of the previous stage's last block. ``pool_padding`` says where the
    max-pool pads its 112x112 input: by 1 on all sides, by 1 at the right and
    the bottom, or nowhere (its output is then 55x55, not 56x56).
    """

    name: str
    network: str  # as provenance records it
    halving: Literal["3x3 of the first block", "1x1 of the first block", "3x3 of the last block"]
    epsilon: float
    pool_padding: Literal["all sides", "end", "none"]
    preprocessing: str  # a name of `provenance.PREPROCESSINGS`


TORCHVISION = Variant("torchvision", "torchvision resnet50", "3x3 of the first block", 1e-5, "all sides", "torchvision")

# caffe: Detectron2's converted ImageNet weights, with the strides of the original network. Its epsilon is that of
# Detectron2's FrozenBatchNorm2d.
CAFFE = Variant("caffe", "caffe resnet50", "1x1 of the first block", 1e-5, "all sides", "caffe")

# Keras: today's keras.applications.ResNet50; the one with the earlier layer names (`res2a_…`), as in Keras 2.2.4; and
# the same without the max-pool's padding, as up to Keras 2.1.6. slim: resnet_v1.py in TensorFlow's models, whose
# epsilon of 1e-5 was raised to 1.001e-5 by the fused batch norm of TensorFlow up to 2.11.
VARIANTS = {
    variant.name: variant
    for variant in (
        TORCHVISION,
        Variant("keras", "keras resnet50", "1x1 of the first block", 1.001e-5, "all sides", "keras"),
        Variant("keras-old", "keras-old resnet50", "1x1 of the first block", 1e-3, "all sides", "keras"),
        Variant("keras-old-pad0", "keras-old-pad0 resnet50", "1x1 of the first block", 1e-3, "none", "keras"),
        Variant("slim", "slim resnet_v1_50", "3x3 of the last block", 1.001e-5, "end", "slim"),
        CAFFE,
    )
}


def named(name: str) -> Variant:
    """Look up a variant by name; raise `WeightsError` for an unknown one."""
    if name not in VARIANTS:
        raise WeightsError(f"there is no variant {name}: use one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def recorded(network: str) -> Variant:
    """Look up a variant by the network of a provenance record; raise `ProvenanceError` for an unknown one."""
    for variant in VARIANTS.values():
        if variant.network == network:
            return variant
    raise ProvenanceError(f"this version does not know the network {network}: upgrade rn50feat")
