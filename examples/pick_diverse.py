"""Pick a diverse subset of images, so that every image is similar to one of them.

    python examples/pick_diverse.py STORE COUNT

Greedy k-center (Gonzalez 1985): starting with the most typical image, pick the
one that is least similar to all that have been picked. In angles, the least
similar image that remains is at most twice as far away as with the best subset
of that size. Prints each picked image with its highest cosine to those before
it, and the coverage: the lowest cosine that an image has with its nearest
picked one.
"""

import argparse

import numpy as np
from sklearn.preprocessing import normalize

import rn50feat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("store")
parser.add_argument("count", type=int)
args = parser.parse_args()

store = rn50feat.FeatureStore(args.store)
with store.reading():  # both calls see the same rows
    features, paths = normalize(np.asarray(store, np.float32)), store.paths()
row = int((features @ features.mean(axis=0)).argmax())
nearest = np.full(len(paths), -1, np.float32)  # the highest cosine of each image with a picked one
for _ in range(min(args.count, len(paths))):
    print(f"{nearest[row]:.4f}  {paths[row]!r}")
    nearest = np.maximum(nearest, features @ features[row])
    nearest[row] = 2  # never picked again
    row = int(nearest.argmin())
print(f"every image has a cosine of at least {min(1, nearest[row]):.4f} with one of these")
