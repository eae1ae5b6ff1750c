"""Read the tensors of a weights file, and what the file says about them.

In: the path of a torch file or a pickle, a safetensors file, or a format that
`weight_files` reads. Out: tensors under torchvision's names, where they were,
the variants that they may be for, and their preprocessing. Nothing in a file is
executed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn50feat.errors import PreprocessingError, WeightsError
from rn50feat.images.provenance import Preprocessing
from rn50feat.model import layouts, pickles, records, strangers, weight_files
from rn50feat.model.layouts import Layout
from rn50feat.model.pickles import Tensor
from rn50feat.model.strangers import NotThisNetworkError
from rn50feat.model.variants import CAFFE, TORCHVISION, VARIANTS, Variant

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]

# The metadata that `packed` writes and `claims` reads; safetensors allows strings only.
_VARIANT, _PREPROCESSING, _SOURCE = "rn50feat.variant", "rn50feat.preprocessing", "rn50feat.source"

_PICKLES = (b"PK", b"\x80")  # torch's zip archives, and pickles
_KNOWN = "use a ResNet50 state dict, a safetensors file, or Keras or TF-slim weights"


@dataclass(frozen=True)
class Claims:
    """What a weights file says about itself: the variants that it may be for, likeliest first, and its preprocessing.

    torchvision's names do not reveal strides and epsilons: such tensors fit
    every variant, and are assumed to be torchvision's unless the user says
    otherwise. ``layout`` says in words what was recognised, "" for plain names;
    ``own`` is timm's record of the preprocessing inside the file, if any.
    """

    variants: tuple[Variant, ...] = tuple(VARIANTS.values())
    preprocessing: Preprocessing | None = None
    layout: str = ""
    own: dict[str, object] | None = None


@dataclass(frozen=True)
class Held:
    """The tensors of a weights file, float32 on the CPU, and what the file says about itself."""

    claims: Claims
    tensors: StateDict


def claims(path: Path) -> Claims:
    """Read what the file at `path` says about itself, without its tensors.

    Raises `WeightsError` for a damaged file, for one that is not a ResNet50's,
    and for a variant that this version does not know.
    """
    name = weight_files.variant(path)
    return _claims_of_content(path, _content(path))[0] if name is None else _claims_of_names(name)


def _claims_of_names(name: str) -> Claims:
    # Keras 2.1.6 and 2.2.4 use the same names for networks with different max-pools: only the user knows.
    names = ("keras-old", "keras-old-pad0") if name == "keras-old" else (name,)
    return Claims(tuple(VARIANTS[name] for name in names))


def read(path: Path) -> Held:
    """Read a weights file; raise `WeightsError` for one that cannot be read or is not a ResNet50's.

    Besides the trunk, only torchvision's classifier and counters are kept.
    """
    import torch

    if weight_files.recognise(path):
        content = weight_files.read(path)
        values = {name: torch.from_numpy(value) for name, value in content.tensors.items()}
        return Held(_claims_of_names(content.variant), values)
    found = _content(path)
    known, layout = _claims_of_content(path, found)
    names = {**layout.names, **layout.extras(found.tensors)}
    try:
        loaded = {own: found.tensors[name].load() for own, name in names.items()}
    except Exception as error:  # whatever torch, zipfile and safetensors raise on values that are not there
        raise _damaged(path, error) from error
    values = {own: value.float() if value.is_floating_point() else value for own, value in loaded.items()}
    return Held(known, {**values, **_without_statistics(layout, values)})


def _without_statistics(layout: Layout, values: StateDict) -> StateDict:
    """Return statistics that change nothing, for norms that consist of a factor and a summand only."""
    import torch

    absent = {name: shape for name, shape in layouts.shapes().items() if name not in layout.names}
    return {
        name: torch.zeros(shape) if name.endswith("mean") else torch.full(shape, 1 - CAFFE.epsilon)
        for name, shape in absent.items()
    }


def packed(state: StateDict, variant: Variant, preprocessing: Preprocessing, *, source: str) -> bytes:
    """Encode `state` as a safetensors file with metadata that `claims` reads; `source` says where it came from."""
    from safetensors.torch import save

    metadata = {
        "format": "pt",
        _VARIANT: variant.name,
        _PREPROCESSING: json.dumps(preprocessing.as_record()),
        _SOURCE: source,
    }
    return bytes(save({name: tensor.contiguous() for name, tensor in state.items()}, metadata))


@dataclass(frozen=True)
class _Content:
    """The tensors in a file by name, all else in it by name, and the metadata of safetensors."""

    tensors: dict[str, Tensor]
    others: dict[str, object]
    metadata: dict[str, str]


def _claims_of_content(path: Path, content: _Content) -> tuple[Claims, Layout]:
    known = _claims_of_metadata(content.metadata, path)
    if not content.tensors:
        raise WeightsError(f"{path} {_without_tensors(content.others)}: save model.state_dict()")
    try:
        layout = layouts.recognise(content.tensors, content.others)
        records.require_network(path, layout.scheme.name)
    except NotThisNetworkError as error:
        raise WeightsError(f"{path} {error}") from error
    if layout.scheme.name == "Caffe2":
        known = replace(known, variants=(CAFFE,))
    elif layout.scheme.name == "Detectron2":
        # Its own networks have Caffe's strides; `__author__` tells those that were converted from torch.
        torch_made = content.others.get("__author__", "Caffe2") in ("torchvision", "MOCO")
        known = replace(known, variants=(TORCHVISION,) if torch_made else (CAFFE, TORCHVISION))
    elif layout.scheme.name == "Hugging Face":
        known = replace(known, variants=(TORCHVISION,))
    return replace(known, layout=str(layout), own=records.inside(content.others)), layout


def _without_tensors(others: dict[str, object]) -> str:
    if any(isinstance(other, pickles.Unknown) for other in others.values()):
        return "holds more than tensors, which rn50feat never executes"
    return "holds no tensors" if others else "holds nothing"


def _content(path: Path) -> _Content:
    """Read the names and shapes in a safetensors file, a torch file or a pickle."""
    if _is_safetensors(path):
        return _content_of_safetensors(path)
    with open(path, "rb") as file:
        head = file.read(262)
    if not head:
        raise WeightsError(f"{path} is empty: download it again")
    if head[257:] == b"ustar":
        raise WeightsError(
            f"{path} is a tar file of torch 0.1, which torch no longer reads safely: use"
            " resnet50-0676ba61.pth instead, which has the same weights"
        )
    if not head.startswith(_PICKLES):
        raise WeightsError(f"{path} is not a weights file: {_KNOWN}")
    try:
        tensors, others = pickles.flattened(pickles.read(path))
    except Exception as error:  # pickle and zipfile raise anything on damaged and foreign data
        raise _unreadable(path, error) from error
    if pickles.is_program(path):
        program = "is a TorchScript program, which rn50feat never executes: save model.state_dict()"
        raise WeightsError(f"{path} {strangers.describe(tensors, {}) or program}")
    return _Content(tensors, others, {})


def _claims_of_metadata(metadata: dict[str, str], path: Path) -> Claims:
    if _VARIANT not in metadata:
        return Claims()
    try:
        variant = VARIANTS[metadata[_VARIANT]]
        return Claims((variant,), Preprocessing.from_record(json.loads(metadata[_PREPROCESSING])))
    except (ValueError, TypeError, KeyError, PreprocessingError) as error:
        raise WeightsError(
            f"{path} has metadata that this version does not understand ({error}): upgrade rn50feat, or convert it"
            " again"
        ) from error


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _content_of_safetensors(path: Path) -> _Content:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is a damaged safetensors file ({error}): download it again") from error
    opened: list[Any] = []

    def load(name: str) -> torch.Tensor:
        if not opened:
            opened.append(safe_open(path, framework="pt"))
        tensor: torch.Tensor = opened[0].get_tensor(name)
        return tensor

    tensors = {name: Tensor(shape, name, partial(load, name)) for name, shape in shapes.items()}
    return _Content(tensors, {}, metadata)


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is damaged ({error}): download it again")


def _unreadable(path: Path, error: Exception) -> WeightsError:
    if isinstance(error, pickles.ForeignError):
        return WeightsError(f"{path} is not a weights file ({error}): {_KNOWN}")
    return WeightsError(f"{path} is damaged or truncated: download it again")
