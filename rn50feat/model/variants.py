"""The published forms of ResNet50, and where each differs from the others.

In: a name, as ``--variant`` takes it or as a provenance record has it. Out: a
`Variant`: where its stages halve the map, its batch norms' epsilon, its
max-pool, and the preprocessing that its weights were trained with. `network`
makes all of them from one class of torchvision's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rn50feat.errors import ProvenanceError, WeightsError


@dataclass(frozen=True)
class Variant:
    """A form of ResNet50.

    ``halving`` is the convolution whose stride 2 halves the map, three times
    in the network: the 3x3 or the first 1x1 of a stage's first block, or the
    3x3 of the last block of the stage before. ``pool_padding`` tells where the
    max-pool pads its input of 112x112: by 1 on all sides, by 1 at the right
    and below, or nowhere (its output is then 55x55, not 56x56).
    """

    name: str
    network: str  # as provenance records it
    halving: Literal["3x3 of the first block", "1x1 of the first block", "3x3 of the last block"]
    epsilon: float
    pool_padding: Literal["all sides", "end", "none"]
    preprocessing: str  # a name of `provenance.PREPROCESSINGS`


TORCHVISION = Variant("torchvision", "torchvision resnet50", "3x3 of the first block", 1e-5, "all sides", "torchvision")

# Keras: keras.applications.ResNet50 of today; the one with the layer names of before (`res2a_…`), as in Keras 2.2.4;
# and the same without the max-pool's padding, as up to Keras 2.1.6. slim: resnet_v1.py in TensorFlow's models, whose
# epsilon of 1e-5 the fused batch norm of TensorFlow up to 2.11 raised to 1.001e-5.
VARIANTS = {
    variant.name: variant
    for variant in (
        TORCHVISION,
        Variant("keras", "keras resnet50", "1x1 of the first block", 1.001e-5, "all sides", "keras"),
        Variant("keras-old", "keras-old resnet50", "1x1 of the first block", 1e-3, "all sides", "keras"),
        Variant("keras-old-pad0", "keras-old-pad0 resnet50", "1x1 of the first block", 1e-3, "none", "keras"),
        Variant("slim", "slim resnet_v1_50", "3x3 of the last block", 1.001e-5, "end", "slim"),
    )
}


def named(name: str) -> Variant:
    """Return a variant by its name; raise `WeightsError` for one that is not known."""
    if name not in VARIANTS:
        raise WeightsError(f"there is no variant {name}: give one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def recorded(network: str) -> Variant:
    """Return the variant that a provenance record means; raise `ProvenanceError` for one that is not known."""
    for variant in VARIANTS.values():
        if variant.network == network:
            return variant
    raise ProvenanceError(f"this version knows no network {network}: upgrade rn50feat")
