"""Read the tensors of a weights file, and what the file tells of itself.

In: the path of a torch state dict, a safetensors file, or what `formats`
reads. Out: tensors under torchvision's names, the variants that they may be
for, and the preprocessing that they ask for. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn50feat.errors import PreprocessingError, WeightsError
from rn50feat.images.provenance import Preprocessing
from rn50feat.model import weight_files
from rn50feat.model.variants import VARIANTS, Variant

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]

# What `packed` puts beside the tensors, and `claims` reads; all values are strings, as safetensors has them.
_VARIANT, _PREPROCESSING, _SOURCE = "rn50feat.variant", "rn50feat.preprocessing", "rn50feat.source"

_TORCH = (b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")  # a zip archive; before torch 1.6, pickles
_KNOWN = "give a ResNet50's state dict, safetensors, or a file of Keras' or TF-slim's weights"


@dataclass(frozen=True)
class Claims:
    """What a weights file tells of itself: the variants that it may be for, likeliest first, and its preprocessing.

    torchvision's own names say nothing of strides and epsilons: such tensors
    fit every variant, and are taken for torchvision's unless the user says
    otherwise.
    """

    variants: tuple[Variant, ...] = tuple(VARIANTS.values())
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class Held:
    """The tensors of a weights file, float32 on the CPU, and what it tells of itself."""

    claims: Claims
    tensors: StateDict


def claims(path: Path) -> Claims:
    """Return what the file at `path` tells of itself, without its tensors.

    Raises `WeightsError` for a damaged file, and for one of a variant that
    this version does not know.
    """
    if _is_safetensors(path):
        return _claims_of_metadata(_metadata(path), path)
    name = weight_files.variant(path)
    return Claims() if name is None else _claims_of_names(name)


def _claims_of_names(name: str) -> Claims:
    # Keras 2.1.6 and 2.2.4 give the same names to networks with another max-pool: only the user knows.
    names = ("keras-old", "keras-old-pad0") if name == "keras-old" else (name,)
    return Claims(tuple(VARIANTS[name] for name in names))


def read(path: Path) -> Held:
    """Return what a weights file holds.

    Names are as in torchvision's ``resnet50``; a leading ``module.`` and an
    enclosing ``state_dict`` or ``model`` entry are taken off. Raises
    `WeightsError`.
    """
    import torch

    if _is_safetensors(path):
        return Held(claims(path), _named_tensors(_read_safetensors(path), path))
    if weight_files.recognise(path):
        found = weight_files.read(path)
        values = {name: torch.from_numpy(value) for name, value in found.tensors.items()}
        return Held(_claims_of_names(found.variant), values)
    return Held(Claims(), _named_tensors(_read_torch(path), path))


def packed(state: StateDict, variant: Variant, preprocessing: Preprocessing, *, source: str) -> bytes:
    """Return a safetensors file of `state` whose metadata `claims` reads; `source` says where the tensors are from."""
    from safetensors.torch import save

    metadata = {
        "format": "pt",
        _VARIANT: variant.name,
        _PREPROCESSING: json.dumps(preprocessing.as_record()),
        _SOURCE: source,
    }
    return bytes(save({name: tensor.contiguous() for name, tensor in state.items()}, metadata))


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return metadata
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _claims_of_metadata(metadata: dict[str, str], path: Path) -> Claims:
    if _VARIANT not in metadata:
        return Claims()
    try:
        variant = VARIANTS[metadata[_VARIANT]]
        return Claims((variant,), Preprocessing.from_record(json.loads(metadata[_PREPROCESSING])))
    except (ValueError, TypeError, KeyError, PreprocessingError) as error:
        raise WeightsError(
            f"{path} says of itself what this version does not know ({error}): upgrade rn50feat, or convert it again"
        ) from error


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is a damaged safetensors file ({error}): fetch it again")


def _read_torch(path: Path) -> Any:
    import torch

    with open(path, "rb") as file:
        head = file.read(262)
    if not head:
        raise WeightsError(f"{path} is empty: fetch it again")
    if head[257:] == b"ustar":
        raise WeightsError(
            f"{path} has the tar form of torch 0.1, which torch no longer reads safely: take"
            " resnet50-0676ba61.pth instead, which holds the same weights"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of data that is none, torch's unpickler makes anything: IndexError for a text, say
        raise WeightsError(f"{path} {_fault(path, head, error)}") from error


def _fault(path: Path, head: bytes, error: Exception) -> str:
    """Return what is wrong with a file that torch cannot read; torch's own text advises to execute what is in it."""
    if not head.startswith(_TORCH):
        return f"is no file of weights: {_KNOWN}"
    if isinstance(error, pickle.UnpicklingError):
        return "holds more than tensors, which is never executed: save model.state_dict()"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"is no file of weights ({reason}): {_KNOWN}"
    return "is damaged or cut off: fetch it again"


def _named_tensors(content: Any, path: Path) -> StateDict:
    import torch

    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise WeightsError(f"{path} holds {type(content).__name__}, not named tensors: save model.state_dict()")
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors: save model.state_dict()")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
