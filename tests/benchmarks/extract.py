"""Measure `extract` beside the loop that most people write, in one run: ``make bench``.

    python tests/benchmarks/extract.py [FOLDER...] [--rounds 3] [--weights random]

Without FOLDER, 400 landscapes of 500x375 and 60 of 4000x3000 are drawn.
Start-up (imports, the network, the ranges for int8, decoding processes) is
left out on both sides; the medians of the rounds, in which all take turns, are
compared. int8 is measured with weights that are not random, on CPUs that have
instructions for it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms

import rn50feat
from rn50feat import EngineOptions
from rn50feat.backends.contract import require_int8
from rn50feat.engines import local
from rn50feat.errors import DeviceError
from rn50feat.model import weights

sys.path.insert(0, str(Path(__file__).parent.parent))
from machine import processor
from scenes import encoded, scene


class Folder(torch.utils.data.Dataset):  # type: ignore[misc]
    """The dataset of the common loop."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.transform = transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        picture: torch.Tensor = self.transform(Image.open(self.paths[i]).convert("RGB"))
        return picture


def loop(paths: list[Path], out: Path, module: torch.nn.Module, device: str, workers: int = 2) -> float:
    """Run the common loop; return its seconds, from the first file opened to the HDF5 file closed."""
    loader = torch.utils.data.DataLoader(Folder(paths), batch_size=32, num_workers=workers)
    start = time.perf_counter()
    with torch.no_grad():
        features = np.concatenate([module(batch.to(device)).cpu().numpy() for batch in loader])
    with h5py.File(out, "w") as file:
        file["features"] = features
        file["paths"] = [str(path) for path in paths]
    return time.perf_counter() - start


def ours(folder: Path, out: Path, options: EngineOptions, named: str) -> float:
    """Run `extract` with the weights `named`; return its seconds without those of starting the engine."""
    summary = rn50feat.extract(folder, out, weights=named, overwrite=True, options=options)
    return summary.seconds - summary.stages["start"]


def alone(store: Path, options: EngineOptions, named: str, seconds: float = 4.0) -> float:
    """Return the images/s of the network of a `store` alone, on crops that are there already."""
    network = local.backend(weights.find(named), rn50feat.FeatureStore(store).provenance, options)
    batches = [np.zeros((network.batch_size, 224, 224, 3), np.uint8)] * 4 * network.lanes
    with ThreadPoolExecutor(network.lanes) as threads:
        list(threads.map(network.features, batches))
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            done += sum(map(len, threads.map(network.features, batches)))
        return done / (time.perf_counter() - begun)


def draw(folder: Path, count: int, width: int, height: int) -> None:
    """Draw landscapes with the grain of photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for seed in range(count):
        pixels = np.asarray(scene(seed, width, height)) + rng.normal(0, 6, (height, width, 1))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        (folder / f"{seed:04}.jpg").write_bytes(encoded(image, quality=90))


def compare(folder: Path, rounds: int, kinds: dict[str, EngineOptions], named: str) -> None:
    """Print the rates of the loop and of `extract`, run in turn, and their ratios."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    module = torchvision.models.resnet50().eval().to(device)
    module.fc = torch.nn.Identity()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    rates: dict[str, list[float]] = {name: [] for name in ("loop", *kinds, *(f"{kind} alone" for kind in kinds))}
    with tempfile.TemporaryDirectory() as out:
        for _ in range(rounds):
            rates["loop"].append(len(paths) / loop(paths, Path(out, "loop.h5"), module, device))
            for kind, options in kinds.items():
                rates[kind].append(len(paths) / ours(folder, Path(out, "ours.h5"), options, named))
                rates[f"{kind} alone"].append(alone(Path(out, "ours.h5"), options, named))
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(paths)} pictures of {folder}, on {device} ({processor()})")
    print(f"weights {named}; medians of {rounds} rounds")
    print(f"  common loop            {median['loop']:8.1f} images/s")
    for kind in kinds:
        rate, limit = median[kind], median[f"{kind} alone"]
        print(
            f"  rn50feat {kind:13} {rate:8.1f} images/s = {rate / median['loop']:.2f} times the loop,"
            f" {rate / limit:.2f} of the network alone ({limit:.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", default="random")
    arguments = parser.parse_args()
    kinds = {"torch": EngineOptions(backend="torch")}
    if find_spec("openvino") and not torch.cuda.is_available():
        kinds["openvino"] = EngineOptions(backend="openvino")
        with suppress(DeviceError):
            require_int8()
            if arguments.weights != "random":
                kinds["openvino int8"] = EngineOptions(backend="openvino", precision="int8")
    with tempfile.TemporaryDirectory() as name:
        folders = arguments.folders
        if not folders:
            folders = [Path(name, "small"), Path(name, "12-megapixels")]
            draw(folders[0], 400, 500, 375)
            draw(folders[1], 60, 4000, 3000)
        for folder in folders:
            compare(folder, arguments.rounds, kinds, arguments.weights)


if __name__ == "__main__":
    main()
