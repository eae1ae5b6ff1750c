"""Turn any weights of a ResNet50 into one safetensors file.

In: weights, as ``--weights`` takes them. Out: a file with their tensors under
torchvision's names, and with their variant and preprocessing in its metadata,
so that the same features come out of it without any further option.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from rn50feat import formats, network, tensors, variants
from rn50feat.disk import DISK, Disk
from rn50feat.errors import WeightsError
from rn50feat.provenance import Provenance
from rn50feat.weights import Choices, settle

SUFFIX = ".safetensors"


def convert(
    source: str,
    target: str | os.PathLike[str],
    *,
    variant: str | None = None,
    preprocess: str | None = None,
    force: bool = False,
    progress: bool = False,
    disk: Disk = DISK,
) -> Provenance:
    """Write the weights `source` to `target`, as a whole or not at all, and return what features of them depend on.

    `force` replaces an existing file, though never the source itself. Raises
    `WeightsError` when the weights are not those of a ResNet50, or `target`
    cannot be written.
    """
    path = Path(target)
    weights, provenance = settle(Choices(source, variant, preprocess), None)
    if weights.path is None:
        raise WeightsError(f"{weights.name} is drawn anew wherever it is named: there is nothing to convert")
    if path.suffix != SUFFIX:
        raise WeightsError(f"{path} does not end in {SUFFIX}, which it is to be: name it {path.stem}{SUFFIX}")
    if path.exists() and weights.path.exists() and any(path.samefile(part) for part in formats.files(weights.path)):
        raise WeightsError(f"{path} is the very file that is to be converted: name another")
    if path.exists() and not force:
        raise WeightsError(f"{path} exists: name another, or give --force to replace it")
    chosen = variants.recorded(provenance.network)
    state = network.state(weights, chosen, progress=progress)
    content = tensors.packed(state, chosen, provenance.preprocessing, source=provenance.weights_label)
    try:
        _replace(Path(os.path.realpath(path)), content, disk)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be written ({error.strerror}): name a file in a folder of your own, where there is room"
        ) from error
    return provenance


def _replace(path: Path, content: bytes, disk: Disk) -> None:
    part = path.with_name(f".rn50feat-{secrets.token_hex(6)}.part")
    handle = disk.create(part)
    try:
        disk.write(handle, content, 0)
        disk.sync(handle)
        disk.rename(part, path)
        disk.sync_folder(path.parent)
    finally:
        os.close(handle)
        disk.remove(part)
