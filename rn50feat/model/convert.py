"""Convert any ResNet50 weights to one safetensors file.

In: weights, as ``--weights`` takes them. Out: a file with their tensors under
torchvision's names and their variant and preprocessing in its metadata, so
that it gives the same features without further options.
"""

from __future__ import annotations

import os
from pathlib import Path

from rn50feat.durable import atomic
from rn50feat.errors import WeightsError
from rn50feat.images.provenance import Provenance
from rn50feat.model import network, tensors, variants, weight_files
from rn50feat.model.download import OnDownload
from rn50feat.model.weights import Choices, settle, with_weights

SUFFIX = ".safetensors"


def convert(
    source: str,
    target: str | os.PathLike[str],
    *,
    variant: str | None = None,
    preprocess: str | None = None,
    force: bool = False,
    on_download: OnDownload = lambda done, total: None,
) -> Provenance:
    """Write the weights `source` to `target` atomically; return the provenance of features made with them.

    `force` replaces an existing file, but never the source itself. Raises
    `WeightsError` if the weights are not a ResNet50's or `target` cannot be
    written.
    """
    path = Path(target)
    weights, provenance = settle(Choices(source, variant, preprocess), None)
    if weights.path is None:
        raise WeightsError(f"{weights.name} is generated from its seed: convert a file or published weights instead")
    if path.suffix != SUFFIX:
        raise WeightsError(f"{path} does not end in {SUFFIX}: name it {path.stem}{SUFFIX}")
    if (
        path.exists()
        and weights.path.exists()
        and any(path.samefile(part) for part in weight_files.files(weights.path))
    ):
        raise WeightsError(f"{path} is the file to convert: name another output file")
    if path.exists() and not force:
        raise WeightsError(f"{path} exists: name another file, or use --force to replace it")
    chosen = variants.recorded(provenance.network)
    state = with_weights(lambda: network.state(weights, chosen), on_download)
    content = tensors.packed(state, chosen, provenance.preprocessing, source=provenance.weights_label)
    with atomic.written([path], kind=WeightsError) as (file,):
        file.write(content)
    return provenance
