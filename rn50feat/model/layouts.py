"""Recognise a ResNet50 among named tensors, whatever program has named and wrapped them.

In: the names and shapes in a file; what encloses a tensor is a prefix of its
name. Out: which tensor is which of torchvision's, and what is left out. There
is one rule: under some prefix, in one of the `SCHEMES`, every tensor of a
ResNet50 is there in its shape, and every other tensor is known to be no part of
it, or belongs to another whole ResNet50 that its authors rank lower. A file
that breaks it is refused, with what it is instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rn50feat.model import strangers
from rn50feat.model.pickles import Tensor
from rn50feat.model.strangers import NotThisNetworkError

BLOCKS = (3, 4, 6, 3)
_MANY = (36,) * 4  # more blocks than any ResNet of this kind has in a stage
_PARTS = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1")
_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # of batch norms: not used in evaluation, and absent from old files


@dataclass(frozen=True)
class Scheme:
    """How a program names the layers: the first convolution, its norm, and the parts of blocks, as in `_PARTS`."""

    name: str
    stem: tuple[str, str]
    block: str  # of the stage, the block and the part
    first: int  # number of the first stage
    parts: tuple[str, ...]
    leaf: str = ".{}"  # after a layer's name
    kernel: str = "weight"
    norm: tuple[str, ...] = _NORM  # shorter if the statistics are part of weight and bias

    def table(self, blocks: tuple[int, ...] = BLOCKS) -> dict[str, str]:
        """Map torchvision's names to this scheme's."""
        layers = {"conv1": self.stem[0], "bn1": self.stem[1]}
        for stage, count in enumerate(blocks):
            for block in range(count):
                for own, part in zip(_PARTS, self.parts):
                    if block == 0 or not own.startswith("downsample"):
                        layers[f"layer{stage + 1}.{block}.{own}"] = self.block.format(stage + self.first, block, part)
        names: dict[str, str] = {}
        for own, layer in layers.items():
            norm = "bn" in own or own.endswith("downsample.1")
            leaves = zip(_NORM, self.norm) if norm else [("weight", self.kernel)]
            names |= {f"{own}.{leaf}": layer + self.leaf.format(word) for leaf, word in leaves}
        return names


_DETECTRON2 = tuple("conv1 conv1.norm conv2 conv2.norm conv3 conv3.norm shortcut shortcut.norm".split())
_CAFFE2 = tuple("branch2a branch2a_bn branch2b branch2b_bn branch2c branch2c_bn branch1 branch1_bn".split())
_HUGGING_FACE = (
    *(f"layer.{i}.{kind}" for i in range(3) for kind in ("convolution", "normalization")),
    "shortcut.convolution",
    "shortcut.normalization",
)
# torchvision's names are also those of timm, VISSL, MMPretrain and every self-supervised training here. Sequential:
# `nn.Sequential(*list(resnet50().children())[:-1])`. Hugging Face: transformers' modeling_resnet.py. Detectron2: its
# convert-torchvision-to-d2.py. Caffe2: its c2_model_loading.py; the older files have the statistics folded in.
SCHEMES = (
    Scheme("torchvision", ("conv1", "bn1"), "layer{}.{}.{}", 1, _PARTS),
    Scheme("torch.nn.Sequential", ("0", "1"), "{}.{}.{}", 4, _PARTS),
    Scheme(
        "Hugging Face",
        ("embedder.embedder.convolution", "embedder.embedder.normalization"),
        "encoder.stages.{}.layers.{}.{}",
        0,
        _HUGGING_FACE,
    ),
    Scheme("Detectron2", ("stem.conv1", "stem.conv1.norm"), "res{}.{}.{}", 2, _DETECTRON2),
    Scheme(
        "Caffe2",
        ("conv1", "res_conv1_bn"),
        "res{}_{}_{}",
        2,
        _CAFFE2,
        "_{}",
        "w",
        ("gamma", "beta", "running_mean", "running_var"),
    ),
    Scheme("Caffe2", ("conv1", "res_conv1_bn"), "res{}_{}_{}", 2, _CAFFE2, "_{}", "w", ("s", "b")),
)
# Of several complete networks, the first of these kinds counts: averaged ones that their authors publish (DINO's
# teacher, a moving average), then any, then the slower twin of a training (MoCo's encoder_k, BYOL's target).
_PREFERRED = r"(\w*_)?(teacher|ema)(_\w+)?"
_SECONDARY = r"student\w*|\w*encoder_k|\w*momentum\w*|(\w+_)?target(_\w+)?"
# What may be next to a trunk without being part of it, by the first part of its name that is not the trunk's.
_HEADS = re.compile(
    r"fc\d*|heads?|\w*_head|(\w+_)?(classifier|clf|linear|logits)\w*|last_linear|neck|mlp|bn"
    r"|\w*proj(ec?t(or|ion))?(_\w+)?|\w*predict(or|ion)(_\w+)?|\w*prototypes?\w*|\w*queue\w*|\w*memory_bank\w*|center"
    r"|\w*loss|criterion|optimizer\w*|\w*scheduler\w*|\w*scaler|amp|loops|callbacks|meters?|metrics?|n_averaged"
    r"|hyper_parameters|hparams|args|(pred|fc1000)_[wb]|conv1_b|\w*rng_state\w*"
    rf"|{_SECONDARY}"
)
_WRAPPERS = {"state_dict", "model", "module", "net", "network", "backbone", "encoder", "stem", "base_model", "blobs"}
# Names for people, by what is in a file; the first that fits.
_KINDS = {
    "VISSL": r"(^|\.)_feature_blocks\.",
    "MoCo": r"(^|\.)encoder_q\.",
    "DINO": r"(^|\.)teacher\.|(^|\.)dino_loss\.",
    "SwAV": r"(^|\.)prototypes\.",
    "BYOL": r"(^|\.)online_\w+\.|(^|\.)target_(encoder|net\w*)\.",
    "SimSiam": r"(^|\.)encoder\.fc\.\d\..*\n(.*\n)*.*(^|\.)predictor\.",
    "Lightning": r"^pytorch-lightning_version$",
    "MMPretrain": r"^meta\.mm\w+_version$",
}


@dataclass(frozen=True)
class Layout:
    """Where a ResNet50 is among the tensors of a file.

    ``names`` has the tensor for each of torchvision's names; ``left_out`` the
    parts of the file that are not used, by their first distinct names.
    """

    kind: str
    scheme: Scheme
    prefix: str
    names: dict[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether these are torchvision's names as they are."""
        return not self.prefix and self.scheme is SCHEMES[0]

    def extras(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Find what torchvision's network has besides the trunk: the classifier, and the counters of batch norms."""
        if self.scheme is not SCHEMES[0]:
            return {}
        norms = [own.removesuffix("running_mean") for own in self.names if own.endswith("running_mean")]
        wanted = ["fc.weight", "fc.bias", *(norm + _COUNTER for norm in norms)]
        return {own: self.prefix + own for own in wanted if self.prefix + own in tensors}

    def __str__(self) -> str:
        """Put into words what was recognised; "" for torchvision's names as they are."""
        if self.plain:
            return ""
        prefix = f"{self.prefix}, " if self.prefix else ""
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{self.kind}: {prefix}{len(self.names)} tensors{left_out}"


def shapes() -> dict[str, tuple[int, ...]]:
    """Build the shapes of the tensors of a ResNet50's trunk, by torchvision's names."""
    found: dict[str, tuple[int, ...]] = {}

    def layer(convolution: str, norm: str, *shape: int) -> None:
        found[f"{convolution}.weight"] = shape
        found.update({f"{norm}.{leaf}": shape[:1] for leaf in _NORM})

    layer("conv1", "bn1", 64, 3, 7, 7)
    channels = 64
    for stage, count in enumerate(BLOCKS):
        width = 64 << stage
        for block in range(count):
            path = f"layer{stage + 1}.{block}."
            layer(f"{path}conv1", f"{path}bn1", width, channels, 1, 1)
            layer(f"{path}conv2", f"{path}bn2", width, width, 3, 3)
            layer(f"{path}conv3", f"{path}bn3", 4 * width, width, 1, 1)
            if block == 0:
                layer(f"{path}downsample.0", f"{path}downsample.1", 4 * width, channels, 1, 1)
            channels = 4 * width
    return found


def recognise(tensors: Mapping[str, Tensor], others: Mapping[str, object]) -> Layout:
    """Find the ResNet50 among `tensors`; raise `NotThisNetworkError` if there is none, or anything unknown.

    `others` are the names of all else in the file; they only tell its kind.
    """
    found = list(_candidates(tensors))
    complete = [layout for layout, faults in found if not faults]
    if not complete:
        fewest = min((faults for _, faults in found), key=len, default=["conv1.weight is missing"])
        raise NotThisNetworkError(strangers.describe(tensors, _likeliest(tensors)) or _incomplete(fewest[0]))
    best = min(_rank(layout.prefix) for layout in complete)
    chosen, *rivals = [layout for layout in complete if _rank(layout.prefix) == best]
    places = {tensors[name].place for name in chosen.names.values()}
    for rival in rivals:
        if {tensors[name].place for name in rival.names.values()} != places:
            raise NotThisNetworkError(
                f"holds two ResNet50s, {chosen.prefix or 'one without a prefix'} and {rival.prefix}:"
                " save the state dict of one of them"
            )
    used = {name for layout in complete for name in _all_names(layout)}
    rest = {name: _head(name, chosen.prefix) for name in tensors if name not in used}
    rest = {name: head for name, head in rest.items() if tensors[name].place not in places}
    if unknown := [name for name, head in rest.items() if not head]:
        canonical = _canonical(tensors, chosen.scheme, chosen.prefix)
        raise NotThisNetworkError(strangers.describe(tensors, canonical) or _surplus(unknown))
    others_at = [layout.prefix.rstrip(".") for layout in complete if _rank(layout.prefix) > best]
    twins = {_head(prefix, chosen.prefix) or prefix or "one without a prefix" for prefix in others_at}
    kind = next((kind for kind, mark in _KINDS.items() if _fits(mark, [*tensors, *others])), chosen.scheme.name)
    return Layout(kind, chosen.scheme, chosen.prefix, chosen.names, tuple(sorted({*rest.values(), *twins})))


def _fits(mark: str, names: list[str]) -> bool:
    return re.search(mark, "\n".join(names), re.MULTILINE) is not None


def _candidates(tensors: Mapping[str, Tensor]) -> Iterator[tuple[Layout, list[str]]]:
    """Yield each place where a network may be, and what is wrong with it there."""
    expected = shapes()
    for scheme in SCHEMES:
        table = scheme.table()
        for name in tensors:
            prefix = name.removesuffix(table["conv1.weight"])
            if prefix == name or not (prefix == "" or prefix.endswith(".")):
                continue
            names = {own: prefix + other for own, other in table.items()}
            yield Layout(scheme.name, scheme, prefix, names), list(_faults(tensors, names, expected))


def _faults(
    tensors: Mapping[str, Tensor], names: dict[str, str], expected: dict[str, tuple[int, ...]]
) -> Iterator[str]:
    for own, name in names.items():
        if name not in tensors:
            yield f"{name} is missing"
        elif tensors[name].shape != expected[own]:
            yield f"{name} has shape {tensors[name].shape}, not {expected[own]}"


def _incomplete(fault: str) -> str:
    return f"is not a ResNet50 ({fault}): use a complete state dict of one"


def _surplus(unknown: list[str]) -> str:
    more = f" and {len(unknown) - 2} more" if len(unknown) > 2 else ""
    return (
        f"has tensors that no ResNet50 and no known head has ({', '.join(unknown[:2])}{more}):"
        " save the state dict of the trunk alone, if it works without them"
    )


def _canonical(tensors: Mapping[str, Tensor], scheme: Scheme, prefix: str) -> dict[str, Tensor]:
    """Return the tensors under `prefix` by torchvision's names, those of blocks that a ResNet50 lacks included."""
    table = scheme.table(_MANY)
    return {own: tensors[prefix + name] for own, name in table.items() if prefix + name in tensors}


def _likeliest(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by torchvision's names, of the prefix and scheme under which most of them are."""
    best: dict[str, Tensor] = {}
    for scheme in SCHEMES:
        last = scheme.block.format(scheme.first, 0, scheme.parts[0]) + scheme.leaf.format(scheme.kernel)
        for name in tensors:
            if name.endswith(last):
                best = max(best, _canonical(tensors, scheme, name.removesuffix(last)), key=len)
    return best


def _all_names(layout: Layout) -> Iterator[str]:
    """Yield the names of a network's tensors in a file, the counters of its batch norms included."""
    for own, name in layout.names.items():
        yield name
        if own.endswith("running_mean"):
            yield name.removesuffix("running_mean") + _COUNTER


def _rank(prefix: str) -> int:
    parts = prefix.split(".")
    if any(re.fullmatch(_PREFERRED, part) for part in parts):
        return 0
    return 2 if any(re.fullmatch(_SECONDARY, part) for part in parts) else 1


def _head(name: str, prefix: str) -> str:
    """Return the part of a name that tells that a tensor is no part of the trunk under `prefix`, or ""."""
    parts, trunk = name.split("."), prefix.split(".")[:-1]
    while trunk and parts and parts[0] == trunk[0]:
        del parts[0], trunk[0]
    while parts[1:] and (parts[0].isdigit() or parts[0] in _WRAPPERS):
        del parts[0]
    return parts[0] if _HEADS.fullmatch(parts[0]) else ""
