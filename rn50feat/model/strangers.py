"""Name the network that a file holds instead of a ResNet50.

In: the names and shapes of its tensors. Out: one line that says what the
network is, why its tensors do not fit, and what to do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from rn50feat.model.pickles import Tensor


class NotThisNetworkError(ValueError):
    """Tensors that are no ResNet50's; the text goes on from the name of the file."""


_OTHER = "use weights of the plain ResNet50, or the program that they come from"
_TRUNK = "if the average pool of its trunk will do, save the trunk's state dict alone"
# By what only they have in their names; the first that fits. What has a ResNet's blocks is told by `_by_shape`.
_BY_NAME = {
    r"(^|\.)_modules\.": "holds a whole model, not its tensors: save its state_dict() instead",
    r"(^|\.)attnpool\.": "is a ResNet of CLIP, with a stem of three convolutions and a pool by attention in place of"
    f" the average: {_OTHER}",
    r"(^|\.)embeddings\.1\.weight$": "is a copy detector such as SSCD, whose descriptors come from a GeM pool and a"
    f" linear layer: {_TRUNK}, which gives other vectors",
    r"(^|\.)(\w*(pool|gem)\w*)(\.\d+)?\.p$": "has a GeM pool, not the average pool of ResNet50:"
    f" {_TRUNK}, which gives other vectors",
    r"(^|\.)conv1_1\.|(^|\.)conv1_1_weights$": "is ResNet50-vd, with a stem of three convolutions and averages in its"
    f" shortcuts: {_OTHER}",
    r"\.(block1\.unit0?1\.conv1|blocks\.0\.norm1|layers\.0\.norm1)\.weight$|(^|\.)root\.conv\.weight$": "is a ResNet"
    f" V2 (such as BiT), which normalises before each convolution, not after it: {_OTHER}",
    r"(^|\.)(cls_token|patch_embed\.|patch_embedding|blocks\.\d+\.attn\.|encoder\.layer\.\d+\.attention\.)": "is a"
    f" vision transformer: {_OTHER}",
    r"\.(se|eca|cbam|attn)\.": "has attention between its convolutions, such as SE or ECA, unlike a plain ResNet50:"
    f" {_OTHER}",
}
_DEEP_STEM = r"(^|\.)(conv1\.[03]|stem\.[03]|stem\.conv2)\.weight$"
_AVERAGED = r"(^|\.)downsample\.2\.(weight|running_mean)$"
_DEPTHS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "ResNet18",
    (False, (3, 4, 6, 3)): "ResNet34",
    (True, (2, 2, 2, 2)): "ResNet26",
    (True, (3, 4, 23, 3)): "ResNet101",
    (True, (3, 8, 36, 3)): "ResNet152",
}


def describe(tensors: Mapping[str, Tensor], canonical: Mapping[str, Tensor]) -> str:
    """Say what the network is, as the end of a sentence about the file; "" for one that is not known.

    `canonical` has the tensors that a ResNet of any depth has, by torchvision's names.
    """
    names = "\n".join(tensors)
    for mark, words in _BY_NAME.items():
        if re.search(mark, names, re.MULTILINE):
            return words
    if re.search(_AVERAGED, names, re.MULTILINE):
        return f"is ResNet50-D, which averages in its shortcuts and mostly has a stem of three convolutions: {_OTHER}"
    if re.search(_DEEP_STEM, names, re.MULTILINE):
        return f"is ResNet50-C, -S or -T, which have a stem of three convolutions instead of one: {_OTHER}"
    return _by_shape({name: tensor.shape for name, tensor in canonical.items()})


def _by_shape(shapes: dict[str, tuple[int, ...]]) -> str:
    """Recognise a ResNet by the number of its blocks, and by the shapes of its convolutions."""
    blocks = Counter(name.split(".")[0] for name in shapes if re.fullmatch(r"layer\d\.\d+\.conv1\.weight", name))
    depth = tuple(blocks[f"layer{stage}"] for stage in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in shapes
    spatial = shapes.get("layer1.0.conv2.weight", ())
    stem = shapes.get("conv1.weight", ())
    if bottleneck and len(spatial) == 4 and spatial[1] < spatial[0]:
        return f"is a ResNeXt: its 3x3 convolutions have {spatial[0] // spatial[1]} groups, ResNet50's have 1: {_OTHER}"
    if bottleneck and spatial[:1] > (64,):
        return f"is a Wide ResNet: its blocks have {spatial[0]} channels where ResNet50's have 64: {_OTHER}"
    if shapes.get("layer1.1.bn1.weight") == (256,) and bottleneck:
        return f"is a ResNet V2, which normalises before each convolution, not after it: {_OTHER}"
    if name := _DEPTHS.get((bottleneck, depth)):
        layers = "three" if bottleneck else "two"
        blocks_of = f"{'-'.join(map(str, depth))} blocks of {layers} convolutions"
        return f"is {name}, with {blocks_of}, not ResNet50's 3-4-6-3 of three: {_OTHER}"
    if all(depth) and len(stem) == 4 and stem[1] != 3:
        return f"takes images of {stem[1]} channels, not of 3: {_OTHER}"
    if all(depth) and len(stem) == 4 and stem[2:] != (7, 7):
        size = "x".join(map(str, stem[2:]))
        return f"is a ResNet for small images: its first convolution is {size}, not 7x7: {_OTHER}"
    return ""
