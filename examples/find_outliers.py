"""Find the images that are least like all others, by the distance of their k-th neighbour.

    python examples/find_outliers.py STORE [--k 5] [--top 20]

Prints the cosine with the k-th most similar image, the lowest first, and the
path. An odd image with fewer than k near-duplicates is still found.
"""

import argparse

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

import rn50feat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("store")
parser.add_argument("--k", type=int, default=5)
parser.add_argument("--top", type=int, default=20)
args = parser.parse_args()

store = rn50feat.FeatureStore(args.store)
with store.reading():  # both calls see the same rows
    features, paths = normalize(np.asarray(store, np.float32)), store.paths()
neighbours = NearestNeighbors(n_neighbors=min(args.k, len(paths) - 1), metric="cosine").fit(features)
distances, _ = neighbours.kneighbors()  # without arguments, an image is not its own neighbour
for row in np.argsort(-distances[:, -1])[: args.top]:
    print(f"{1 - distances[row, -1]:.4f}  {paths[row]!r}")
