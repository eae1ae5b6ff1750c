"""Turn any weights of a ResNet50 into one safetensors file.

In: weights, as ``--weights`` takes them. Out: a file with their tensors under
torchvision's names, and with their variant and preprocessing in its metadata,
so that the same features come out of it without any further option.
"""

from __future__ import annotations

import os
from pathlib import Path

from rn50feat.durable import atomic
from rn50feat.errors import WeightsError
from rn50feat.images.provenance import Provenance
from rn50feat.model import network, tensors, variants, weight_files
from rn50feat.model.download import Told
from rn50feat.model.weights import Choices, settle, with_weights

SUFFIX = ".safetensors"


def convert(
    source: str,
    target: str | os.PathLike[str],
    *,
    variant: str | None = None,
    preprocess: str | None = None,
    force: bool = False,
    on_download: Told = lambda done, total: None,
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
    if (
        path.exists()
        and weights.path.exists()
        and any(path.samefile(part) for part in weight_files.files(weights.path))
    ):
        raise WeightsError(f"{path} is the very file that is to be converted: name another")
    if path.exists() and not force:
        raise WeightsError(f"{path} exists: name another, or give --force to replace it")
    chosen = variants.recorded(provenance.network)
    state = with_weights(lambda: network.state(weights, chosen), on_download)
    content = tensors.packed(state, chosen, provenance.preprocessing, source=provenance.weights_label)
    with atomic.written([path], kind=WeightsError) as (file,):
        file.write(content)
    return provenance
