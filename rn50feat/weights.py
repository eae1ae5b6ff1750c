"""Find, check and read the weights of a network.

In: what ``--weights`` takes: ``imagenet-v1``, ``imagenet-v2``, a file, or
``random[:SEED]``. Out: their identity (a name and a SHA-256, told without
torch) and the tensors of their file under torchvision's names. Nothing in a
file is ever executed, and nothing stands in for weights that cannot be had.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn50feat.errors import WeightsError
from rn50feat.provenance import Preprocessing, Provenance

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Published:
    """Weights that torchvision publishes: where, how their SHA-256 begins, and the resize in pixels."""

    url: str
    sha256: str
    resize: int


# Copied from torchvision.models.ResNet50_Weights, so that naming them needs no torchvision.
PUBLISHED = {
    "imagenet-v1": Published("https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61", 256),
    "imagenet-v2": Published("https://download.pytorch.org/models/resnet50-11ad3fa6.pth", "11ad3fa6", 232),
}
# V1: for near-identical pictures V2 was reported to give cosines below 0.7, V1
# above 0.95 (pytorch/vision issue 8382).
DEFAULT = "imagenet-v1"


@dataclass(frozen=True)
class Weights:
    """Weights by name: the file that holds them (or will, once downloaded), or the seed of random ones."""

    name: str
    path: Path | None = None
    seed: int = 0

    @property
    def published(self) -> Published | None:
        return PUBLISHED.get(self.name)


def find(spec: str) -> Weights:
    """Return the weights that `spec` names; raise `WeightsError` when there are none."""
    if spec in PUBLISHED:
        return Weights(spec, _download_folder() / PUBLISHED[spec].url.rpartition("/")[2])
    if match := re.fullmatch(r"random(?::(\d{1,18}))?", spec):
        seed = int(match[1] or 0)
        return Weights(f"random:{seed}", seed=seed)
    with suppress(OSError, RuntimeError):  # a circle of links; the home of a user that does not exist
        path = Path(spec).expanduser().resolve()
        if path.is_file():
            return Weights(path.name, path)
    known = ", ".join(PUBLISHED)
    raise WeightsError(f"weights {spec}: no such file: give {known}, random[:SEED] or the path of a file")


def _download_folder() -> Path:
    """Return torch.hub's own folder for weights (its `get_dir`, without importing torch)."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch"), "hub", "checkpoints").expanduser()


def provenance(weights: Weights, *, exif: bool = True, exact: bool = False) -> Provenance:
    """Return what vectors of `weights` depend on.

    The SHA-256 stays empty for random weights and for those not downloaded
    yet. Raises `WeightsError` for a downloaded file that is damaged.
    """
    sha256 = hash_file(weights.path) if weights.path and weights.path.exists() else ""
    published = weights.published or next((p for p in PUBLISHED.values() if sha256.startswith(p.sha256)), None)
    if sha256 and weights.published and not sha256.startswith(weights.published.sha256):
        raise WeightsError(
            f"{weights.path} is damaged (its SHA-256 begins with {sha256[:8]}, not {weights.published.sha256}):"
            " remove it and run again"
        )
    return Provenance(
        weights=weights.name,
        weights_sha256=sha256,
        weights_path=str(weights.path or ""),
        preprocessing=Preprocessing(
            resize=published.resize if published else Preprocessing.resize,
            exif="applied" if exif else "ignored",
            decoding="exact" if exact else "scaled",
        ),
    )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            state = hashlib.sha256()
            while block := file.read(1 << 20):
                state.update(block)
        return state.hexdigest()
    except OSError as error:
        raise WeightsError(
            f"weights {path} cannot be read: {error.strerror}: mend that or name another file"
        ) from error


def read(weights: Weights, *, progress: bool = False) -> StateDict:
    """Return the tensors of a weights file in float32 on the CPU, downloading a published one first.

    Names are as in torchvision's ``resnet50``; a leading ``module.`` and an
    enclosing ``state_dict`` or ``model`` entry are taken off. `progress` shows
    the download on stderr. Raises `WeightsError`.
    """
    assert weights.path is not None
    if weights.published and not weights.path.exists():
        _download(weights.published, weights.path, progress)
    content = _read_safetensors(weights.path) if _is_safetensors(weights.path) else _read_torch(weights.path)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return _named_tensors(content, weights.path)


def _download(published: Published, path: Path, progress: bool) -> None:
    import torch

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(path), hash_prefix=published.sha256, progress=progress)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise WeightsError(
            f"{published.url} cannot be downloaded ({error}): fetch it by hand and put it at {path},"
            " or name other weights with --weights"
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
        raise WeightsError(f"{path} is a damaged safetensors file ({error}): fetch it again") from error


def _read_torch(path: Path) -> Any:
    import torch

    with open(path, "rb") as file:
        if file.read(262)[257:] == b"ustar":
            raise WeightsError(
                f"{path} has the tar form of torch 0.1, which torch no longer reads safely: take"
                f" {PUBLISHED['imagenet-v1'].url.rpartition('/')[2]} instead, which holds the same weights"
            )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of data that is none, torch's unpickler makes anything: IndexError for a text, say
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{path} is no torch state dict or safetensors file ({reason}): give the file of a ResNet50's state dict"
        ) from error


def _named_tensors(content: Any, path: Path) -> StateDict:
    import torch

    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise WeightsError(f"{path} holds {type(content).__name__}, not named tensors: save model.state_dict()")
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors: save model.state_dict()")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def settle(
    spec: str | None, exif: bool | None, exact: bool | None, old: Provenance | None
) -> tuple[Weights, Provenance]:
    """Return the weights and the provenance of a run; what is not said is as in an `old` store, if there is one."""
    weights = recorded(old) if spec is None and old is not None else find(spec or DEFAULT)
    if exif is None:
        exif = old is None or old.preprocessing.exif == "applied"
    if exact is None:
        exact = old is not None and old.preprocessing.decoding == "exact"
    settled = provenance(weights, exif=exif, exact=exact)
    if old is not None and not settled.weights_sha256 and settled.weights == old.weights:
        settled = replace(settled, weights_sha256=old.weights_sha256)  # the engine will tell if that is not so
    return weights, settled


def recorded(provenance: Provenance) -> Weights:
    """Return the weights that a store was made with; raise `WeightsError` when they have moved or changed."""
    if not provenance.weights_path or provenance.weights in PUBLISHED:
        return find(provenance.weights)
    path = Path(provenance.weights_path)
    if not path.is_file():
        raise WeightsError(f"{provenance.weights_label} lay at {path} and are gone: say where with --weights FILE")
    if hash_file(path) != provenance.weights_sha256:
        raise WeightsError(
            f"{path} has changed since the store was made with {provenance.weights_label}:"
            " say where that file is now with --weights FILE"
        )
    return Weights(provenance.weights, path)
