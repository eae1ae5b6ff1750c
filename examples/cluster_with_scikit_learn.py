"""Use the features of a store in scikit-learn: group the images by k-means.

python examples/cluster_with_scikit_learn.py STORE GROUPS
"""

import sys

import numpy as np
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from rn50feat import FeatureStore


def main(path: str, groups: int) -> None:
    store = FeatureStore(path)
    # Stored features are not normalised; at unit length, k-means groups by cosine.
    features = normalize(np.asarray(store, np.float32))
    labels = KMeans(groups, n_init=10, random_state=0).fit_predict(features)
    for label, image in sorted(zip(labels, store.paths())):
        print(f"{label}  {image!r}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
