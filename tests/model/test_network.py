"""network: the vectors of the plain pipeline, whatever the batches, workers and interruptions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import rows
from networks import cosines, distance
from PIL import Image
from torchvision import transforms

import rn50feat
from rn50feat import EngineOptions
from rn50feat.model import network, weights

FP32 = EngineOptions(device="cpu", precision="fp32")  # with what `auto` chooses


def plain_pipeline(module: torch.nn.Module, files: list[Path]) -> np.ndarray:
    """What everybody writes: PIL, Resize, CenterCrop, Normalize, and the network without fc."""
    plain = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    body = torch.nn.Sequential(*list(module.children())[:-1], torch.nn.Flatten())
    with torch.no_grad():
        return body(torch.stack([plain(Image.open(file).convert("RGB")) for file in files])).numpy()


def test_rows_are_those_of_the_plain_pipeline(
    scenes: Path, resnet50: torch.nn.Module, weights: Path, tmp_path: Path
) -> None:
    rn50feat.extract(scenes, tmp_path / "out.h5", weights=str(weights), options=FP32)
    files = sorted(scenes.iterdir())
    stored = rows(tmp_path / "out.h5")
    assert list(stored) == [f"../{file.parent.name}/{file.name}" for file in files]
    expected = plain_pipeline(resnet50, files)
    assert cosines(np.stack(list(stored.values())), expected).min() > 0.99999
    # and a row is nobody else's: its own picture is the nearest of all
    nearest = np.linalg.norm(np.stack(list(stored.values()))[:, None] - expected[None], axis=2).argmin(axis=1)
    assert nearest.tolist() == list(range(len(files)))


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (7, 3), (64, 2)])
def test_rows_do_not_depend_on_batches_workers_or_interruptions(
    scenes: Path, weights: Path, tmp_path: Path, batch_size: int, workers: int
) -> None:
    rn50feat.extract(scenes, tmp_path / "whole.h5", weights=str(weights), options=FP32)
    options = replace(FP32, batch_size=batch_size, workers=workers)
    files = sorted(scenes.iterdir())
    for part in (files[:5], files):  # stopped after five pictures, and resumed
        rn50feat.extract(part, tmp_path / "parts.h5", weights=str(weights), options=options)
    whole, parts = rows(tmp_path / "whole.h5"), rows(tmp_path / "parts.h5")
    assert list(parts) == list(whole)
    for path, row in whole.items():
        assert np.linalg.norm(parts[path] - row) <= 1e-5 * np.linalg.norm(row)


@pytest.mark.slow
def test_orientations_give_one_vector_unless_they_are_left(tmp_path: Path) -> None:
    from scenes import scene, turned

    for orientation in range(1, 9):
        (tmp_path / f"{orientation}.jpg").write_bytes(turned(scene(5), orientation))
    pictures = sorted(tmp_path.glob("*.jpg"))
    for exif in (True, False):
        rn50feat.extract(pictures, tmp_path / f"{exif}.h5", weights="random", exif=exif, options=FP32)
    upright = np.stack(list(rows(tmp_path / "True.h5").values()))
    left = np.stack(list(rows(tmp_path / "False.h5").values()))
    centre = upright.mean(axis=0)
    spread = np.linalg.norm(left - centre, axis=1) / np.linalg.norm(upright - centre, axis=1).max()
    assert cosines(upright, upright[:1]).min() > 0.9999
    assert (spread[1:] > 5).all()  # random weights keep all pictures close: compare distances


@pytest.mark.slow
def test_random_weights_are_those_of_a_seeded_torchvision() -> None:
    torch.manual_seed(5)
    expected = torchvision.models.resnet50().eval()
    five, other = network.load(weights.find("random:5")), network.load(weights.find("random"))
    assert distance(five.module, expected) < 1e-5 < distance(other.module, expected)
    assert five.sha256 == network.load(weights.find("random:5")).sha256 != other.sha256


def test_scaled_decoding_stays_close_to_the_plain_pipeline(
    tmp_path: Path, resnet50: torch.nn.Module, weights: Path
) -> None:
    from scenes import encoded, scene

    for seed in range(4):
        size = [(2300, 1700), (1803, 2405), (4001, 1111), (1100, 1030)][seed]
        (tmp_path / f"{seed}.jpg").write_bytes(encoded(scene(seed, *size), quality=92))
    pictures = sorted(tmp_path.glob("*.jpg"))
    expected = plain_pipeline(resnet50, pictures)
    worst = {}
    for exact in (False, True):
        rn50feat.extract(pictures, tmp_path / f"{exact}.h5", weights=str(weights), exact_decode=exact, options=FP32)
        found = np.stack(list(rows(tmp_path / f"{exact}.h5").values()))
        worst[exact] = (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()
        assert cosines(found, expected).min() > (0.99999 if exact else 0.999)
    assert worst[True] < worst[False]
