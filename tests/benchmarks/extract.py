"""Measure `extract` beside the loop that most people write, in one run: ``make bench``.

    python tests/benchmarks/extract.py [FOLDER] [--rounds 3]

Without FOLDER, 200 landscapes of 640x480 are drawn. Start-up (imports, the
network, decoding processes) is left out on both sides; the medians of the
rounds, which alternate, are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms

import rn50feat
from rn50feat import EngineOptions
from rn50feat.engines import Engine, local

sys.path.insert(0, str(Path(__file__).parent.parent))
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


def loop(paths: list[Path], out: Path, module: torch.nn.Module, device: str) -> float:
    """Run the common loop; return its seconds, from the first file opened to the HDF5 file closed."""
    loader = torch.utils.data.DataLoader(Folder(paths), batch_size=32, num_workers=2)
    start = time.perf_counter()
    with torch.no_grad():
        features = np.concatenate([module(batch.to(device)).cpu().numpy() for batch in loader])
    with h5py.File(out, "w") as file:
        file["features"] = features
        file["paths"] = [str(path) for path in paths]
    return time.perf_counter() - start


def ours(folder: Path, out: Path) -> float:
    """Run `extract`; return its seconds without those of starting the engine."""
    waited = 0.0

    def start(*arguments: object, **settings: object) -> Engine:
        nonlocal waited
        begun = time.perf_counter()
        engine = local.start(*arguments, **settings)  # type: ignore[arg-type]
        waited = time.perf_counter() - begun
        return engine

    begun = time.perf_counter()
    rn50feat.extract(folder, out, weights="random", overwrite=True, options=EngineOptions(), start=start)
    return time.perf_counter() - begun - waited


def draw(folder: Path, count: int = 200) -> None:
    for seed in range(count):
        (folder / f"{seed:04}.jpg").write_bytes(encoded(scene(seed, 640, 480), quality=90))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    module = torchvision.models.resnet50().eval().to(device)
    module.fc = torch.nn.Identity()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name, "pictures")
        if arguments.folder is None:
            folder.mkdir()
            draw(folder)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
        rates: dict[str, list[float]] = {"common loop": [], "rn50feat": []}
        for _ in range(arguments.rounds):
            rates["common loop"].append(len(paths) / loop(paths, Path(name, "loop.h5"), module, device))
            rates["rn50feat"].append(len(paths) / ours(folder, Path(name, "ours.h5")))
    for program, values in rates.items():
        print(f"{program:12} {statistics.median(values):8.1f} images/s on {device}, median of {len(values)}")
    ratio = statistics.median(rates["rn50feat"]) / statistics.median(rates["common loop"])
    print(f"{'ratio':12} {ratio:8.2f}")


if __name__ == "__main__":
    main()
