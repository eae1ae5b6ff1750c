"""Measure the time and the peak memory of `merge` on two stores, and of merging them again.

    python tests/benchmarks/merge.py [--rows 100000] [--folder /tmp]

The stores hold random features in float32. Needs 4 times 8 kB of disk for each row.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rn50feat.images.provenance import Provenance
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import create_store

MERGE = "import sys; from rn50feat import merge; print(merge(sys.argv[1:-1], sys.argv[-1]).as_dict()['new'])"


def make(path: Path, count: int) -> None:
    """Make a store of `count` rows."""
    rng = np.random.default_rng(0)
    with create_store(path, Provenance("random:0", "00" * 32), np.dtype("float32")) as writer:
        for first in range(0, count, 1000):
            locations = [f"{path.parent}/{path.stem}/{i // 1000:04}/{i:08}.jpg" for i in range(first, first + 1000)]
            writer.append(
                [Reference(location, 1, 1, os.urandom(16)) for location in locations],
                rng.random((1000, 2048), np.float32),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        stores = [Path(name, "a.h5"), Path(name, "b.h5")]
        for store in stores:
            make(store, arguments.rows)
        for what in ("merged", "merged again"):
            begun = time.monotonic()
            command = [sys.executable, "-c", MERGE, *map(str, stores), str(Path(name, "out.h5"))]
            new = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.strip()
            seconds, peak = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            print(f"two stores of {arguments.rows} rows {what}: {new} new in {seconds:.1f} s, peak {peak / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
