"""Measure `search QUERY` as a whole process on 10,000 rows, beside what a script with torchvision takes.

    python tests/benchmarks/search_start.py [--rounds 5]

The script imports torchvision, builds the network and runs one picture. Both
are run in turn; the first search, which compiles the network and the modules,
is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import rn50feat
from rn50feat import EngineOptions
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import open_store

sys.path.insert(0, str(Path(__file__).parent.parent))
from scenes import encoded, scene

ROWS = 10_000
SCRIPT = """
import sys, torch, torchvision
from PIL import Image
from torchvision import transforms
network = torchvision.models.resnet50().eval()
network.fc = torch.nn.Identity()
prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
with torch.no_grad():
    network(prepare(Image.open(sys.argv[1]).convert("RGB"))[None])
"""


def seconds(*command: str | Path) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        query, store = Path(name, "query.jpg"), Path(name, "out.h5")
        query.write_bytes(encoded(scene(1, 640, 480)))
        rn50feat.extract(query, store, weights="random", options=EngineOptions(backend=arguments.backend))
        rng = np.random.default_rng(0)
        with open_store(store) as writer:
            known = [Reference(f"{name}/{i}.jpg", i, i, i.to_bytes(16, "big")) for i in range(ROWS)]
            writer.append(known, rng.gamma(0.5, 1, (ROWS, 2048)).astype(np.float16))
        search = ("-m", "rn50feat", "search", query, store, "--backend", arguments.backend)
        seconds(*search)
        times = [(seconds(*search), seconds("-c", SCRIPT, query)) for _ in range(arguments.rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*times))
    print(f"rn50feat search, {ROWS} rows {ours:6.2f} s, median of {arguments.rounds}")
    print(f"torchvision, one picture     {theirs:6.2f} s")
    print(f"ratio                        {theirs / ours:6.2f}")


if __name__ == "__main__":
    main()
