"""convert: the same features from one safetensors file, which says itself what it is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import checkpoints
import keras_files
import numpy as np
import published
import pytest
import torch
from click.testing import Result
from conftest import rows
from networks import FP32, trained
from safetensors import safe_open
from safetensors.torch import save_file

import rn50feat
from rn50feat.durable.disk import Disk
from rn50feat.errors import WeightsError
from rn50feat.images.provenance import PREPROCESSINGS, Preprocessing
from rn50feat.model import network, tensors, variants, weights
from rn50feat.model.convert import convert

pytestmark = pytest.mark.slow


def written(folder: Path, kind: str) -> Path:
    """Write random weights into a file of each kind."""
    held, biases = trained(8)
    if kind == "keras":
        return keras_files.write_by_layer(folder / "weights.h5", published.keras_layers(held, biases))
    if kind == "slim":
        return checkpoints.write_v2(folder / "weights.ckpt", published.slim_variables(held))
    path = folder / f"weights.{kind}"
    state = {name: torch.from_numpy(value) for name, value in held.items()}
    torch.save(state, path) if kind == "pth" else save_file(state, path)
    return path


@pytest.mark.parametrize("kind", ["keras", "slim"])
def test_the_same_features_to_the_bit(kind: str, scenes: Path, tmp_path: Path) -> None:
    source, target = written(tmp_path, kind), tmp_path / "one.safetensors"
    convert(str(source), target)
    pictures = sorted(scenes.iterdir())[:3]
    for name, chosen in (("a", source), ("b", target)):
        rn50feat.extract(pictures, tmp_path / f"{name}.h5", weights=str(chosen), options=FP32)
    before, after = rows(tmp_path / "a.h5"), rows(tmp_path / "b.h5")
    np.testing.assert_array_equal(np.stack(list(after.values())), np.stack(list(before.values())))
    own, other = (weights.provenance(weights.find(str(path))) for path in (source, target))
    assert (other.network, other.preprocessing) == (own.network, own.preprocessing)
    assert weights.find(str(target)).claims().variants == (variants.recorded(own.network),)


def test_what_the_user_knows_better_is_written_down(tmp_path: Path) -> None:
    source, target = written(tmp_path, "safetensors"), tmp_path / "one.safetensors"
    convert(str(source), target, variant="keras-old-pad0", preprocess="slim-pillow")
    provenance = weights.provenance(weights.find(str(target)))
    assert provenance.network == "keras-old-pad0 resnet50"
    assert provenance.preprocessing == PREPROCESSINGS["slim-pillow"]
    with pytest.raises(WeightsError, match="for the variant keras-old-pad0, not keras-old"):
        network.load(weights.find(str(target)), variants.VARIANTS["keras-old"])
    with safe_open(target, "numpy") as file:
        assert file.metadata()["rn50feat.source"].startswith("weights.safetensors (SHA-256 ")


def test_published_weights_keep_their_own_resize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path, "pth")
    digest = weights.hash_file(source)[:8]
    monkeypatch.setitem(weights.PUBLISHED, "imagenet-v2", weights.Published("http://none/", digest, 232))
    convert(str(source), tmp_path / "one.safetensors")
    assert weights.provenance(weights.find(str(tmp_path / "one.safetensors"))).preprocessing == Preprocessing(
        resize=232
    )


def test_nothing_is_replaced_by_mistake(tmp_path: Path, here: Callable[..., Result]) -> None:
    source, target = written(tmp_path, "safetensors"), tmp_path / "one.safetensors"
    target.write_bytes(b"another's")
    (tmp_path / "link.safetensors").symlink_to(source)
    for arguments, reason in (
        ((source, target), "exists: name another file, or use --force"),
        ((source, source, "--force"), "is the file to convert"),
        ((source, "link.safetensors", "--force"), "is the file to convert"),
        ((source, "one.h5"), "does not end in .safetensors"),
        (("random", "one.safetensors"), "is generated from its seed"),
        (("no-such-file", "other.safetensors"), "no such file"),
        ((source, "missing/other.safetensors"), "cannot be written (No such file or directory)"),
        ((target, "other.safetensors"), "is not a weights file"),
    ):
        done = here("convert", *arguments)
        assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
        assert reason in done.stderr
    assert target.read_bytes() == b"another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.safetensors", "one.safetensors", source.name]
    done = here("convert", source, target, "--force")
    assert done.exit_code == 0
    assert done.stderr.startswith(f"{target}: torchvision resnet50, preprocessing torchvision, from {source.name} (SHA")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = written(tmp_path, "safetensors"), tmp_path / "one.safetensors"
    target.write_bytes(b"another's")

    def full(self: Disk, handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Disk, "sync", full)
    with pytest.raises(WeightsError, match="cannot be written .No space left on device."):
        convert(str(source), target, force=True)
    assert target.read_bytes() == b"another's"
    assert sorted(tmp_path.iterdir()) == [target, source]


def test_a_record_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "later.safetensors"
    for metadata in (
        {"rn50feat.variant": "resnext", "rn50feat.preprocessing": "{}"},
        {"rn50feat.variant": "keras"},
        {"rn50feat.variant": "keras", "rn50feat.preprocessing": "{}"},
        {"rn50feat.variant": "keras", "rn50feat.preprocessing": "["},
    ):
        save_file({"conv1.weight": torch.zeros(1)}, path, metadata)
        with pytest.raises(WeightsError, match="does not understand .*: upgrade rn50feat, or convert it again"):
            tensors.claims(path)
