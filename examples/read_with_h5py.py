"""Read a store with h5py alone, as any other program can.

python examples/read_with_h5py.py STORE
"""

import sys

import h5py

with h5py.File(sys.argv[1], "r") as file:
    features, paths = file["features"][:], file["paths"].asstr(errors="surrogateescape")[:]

print(f"{len(paths)} images, {features.shape[1]} features each, {features.dtype}")
for path, feature in zip(paths, features):
    print(f"{path!r}: mean {feature.mean():.4f}")
