"""Search the index of a store with FAISS alone: it is an ordinary FAISS file, and its ids are the store's.

    rn50feat index STORE
    python examples/use_faiss_directly.py STORE

Prints the nearest neighbour of each image, by the index's own estimate of
the cosine; rn50feat ranks such candidates again by their rows in the store.
"""

import sys
from pathlib import Path

import faiss
import h5py
import numpy as np

store = Path(sys.argv[1])
index = faiss.read_index(str(store.with_suffix(".faiss")))
with h5py.File(store, "r") as file:
    features, ids = file["features"][:].astype(np.float32), file["ids"][:]
    paths = dict(zip(ids.tolist(), file["paths"].asstr(errors="surrogateescape")[:]))

faiss.normalize_L2(features)  # an index for cosine holds vectors of length 1
scores, neighbours = index.search(features, 2)
for own, score, found in zip(ids.tolist(), scores, neighbours):
    best = next(i for i in range(2) if found[i] != own)
    print(f"{score[best]:.4f}  {paths[own]!r}  {paths[found[best]]!r}")
