"""Read the tensors of a weights file, and what the file says about them.

In: the path of a torch state dict, a safetensors file, or a format that
`weight_files` reads. Out: tensors under torchvision's names, the variants that
they may be for, and their preprocessing. Nothing in a file is executed.
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

# The metadata that `packed` writes and `claims` reads; safetensors allows strings only.
_VARIANT, _PREPROCESSING, _SOURCE = "rn50feat.variant", "rn50feat.preprocessing", "rn50feat.source"

_TORCH = (b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")  # a zip archive; before torch 1.6, pickles
_KNOWN = "use a ResNet50 state dict, a safetensors file, or Keras or TF-slim weights"


@dataclass(frozen=True)
class Claims:
    """What a weights file says about itself: the variants that it may be for, likeliest first, and its preprocessing.

    torchvision's names do not reveal strides and epsilons: such tensors fit
    every variant, and are assumed to be torchvision's unless the user says
    otherwise.
    """

    variants: tuple[Variant, ...] = tuple(VARIANTS.values())
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class Held:
    """The tensors of a weights file, float32 on the CPU, and what the file says about itself."""

    claims: Claims
    tensors: StateDict


def claims(path: Path) -> Claims:
    """Read what the file at `path` says about itself, without its tensors.

    Raises `WeightsError` for a damaged file, and for a variant that this
    version does not know.
    """
    if _is_safetensors(path):
        return _claims_of_metadata(_metadata(path), path)
    name = weight_files.variant(path)
    return Claims() if name is None else _claims_of_names(name)


def _claims_of_names(name: str) -> Claims:
    # Keras 2.1.6 and 2.2.4 use the same names for networks with different max-pools: only the user knows.
    names = ("keras-old", "keras-old-pad0") if name == "keras-old" else (name,)
    return Claims(tuple(VARIANTS[name] for name in names))


def read(path: Path) -> Held:
    """Read a weights file.

    Names are those of torchvision's ``resnet50``; a leading ``module.`` and an
    enclosing ``state_dict`` or ``model`` entry are removed. Raises
    `WeightsError` for a file that cannot be read.
    """
    import torch

    if _is_safetensors(path):
        return Held(claims(path), _named_tensors(_read_safetensors(path), path))
    if weight_files.recognise(path):
        content = weight_files.read(path)
        values = {name: torch.from_numpy(value) for name, value in content.tensors.items()}
        return Held(_claims_of_names(content.variant), values)
    return Held(Claims(), _named_tensors(_read_torch(path), path))


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
            f"{path} has metadata that this version does not understand ({error}): upgrade rn50feat, or convert it"
            " again"
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
    return WeightsError(f"{path} is a damaged safetensors file ({error}): download it again")


def _read_torch(path: Path) -> Any:
    import torch

    with open(path, "rb") as file:
        head = file.read(262)
    if not head:
        raise WeightsError(f"{path} is empty: download it again")
    if head[257:] == b"ustar":
        raise WeightsError(
            f"{path} is a tar file of torch 0.1, which torch no longer reads safely: use"
            " resnet50-0676ba61.pth instead, which has the same weights"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises anything on other data, such as IndexError for a text
        raise WeightsError(f"{path} {_fault(path, head, error)}") from error


def _fault(path: Path, head: bytes, error: Exception) -> str:
    """Describe what is wrong with a file that torch cannot read; torch's own message advises executing its content."""
    if not head.startswith(_TORCH):
        return f"is not a weights file: {_KNOWN}"
    if isinstance(error, pickle.UnpicklingError):
        return "holds more than tensors, which rn50feat never executes: save model.state_dict()"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"is not a weights file ({reason}): {_KNOWN}"
    return "is damaged or truncated: download it again"


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
