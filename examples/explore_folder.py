"""From a folder of images to features, k-NN accuracy and a map, in the cells of a notebook.

    python examples/explore_folder.py FOLDER [WEIGHTS]

The folders in FOLDER are the classes of the images. The features are written
to FOLDER/features.h5, and the map to FOLDER/map.png, or printed without
matplotlib.
"""

# %% Features: a row of 2048 numbers for each image. A second run computes only new images.
import sys
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

import rn50feat

folder, *weights = ["images"] if "ipykernel" in sys.modules else sys.argv[1:]  # in a notebook, name them here
path = Path(folder, "features.h5")
rn50feat.extract(folder, path, weights=weights[0] if weights else None)
store = rn50feat.FeatureStore(path)
print(store)

# %% Labels: the names of the folders. At unit length, the nearest vectors have the highest cosines.
with store.reading():  # all calls see the same rows
    labels, features, ids = store.labels(), normalize(np.asarray(store, np.float32)), store.column("ids")
print(dict(zip(*(values.tolist() for values in np.unique(labels, return_counts=True)))))

# %% Near-duplicates, which must not be on both sides of a split: the accuracy would be too high.
scenes = rn50feat.duplicates(store).scenes(ids)

# %% Accuracy: how often the five nearest images of other scenes are of the same class.
folds = GroupKFold(min(5, len(set(scenes))))
accuracy = cross_val_score(KNeighborsClassifier(5), features, labels, groups=scenes, cv=folds).mean()
print(f"k-NN accuracy {accuracy:.3f}")

# %% Map: the two directions in which the features differ most.
x, y = PCA(2, random_state=0).fit_transform(features).T
try:
    from matplotlib import pyplot

    for label in np.unique(labels):
        pyplot.scatter(x[labels == label], y[labels == label], s=9, label=label)
    pyplot.legend()
    pyplot.savefig(Path(folder, "map.png"))
except ImportError:
    across, down = (
        ((values - values.min()) / np.ptp(values) * last).astype(int) for values, last in ((x, 59), (-y, 15))
    )
    grid = np.full((16, 60), " ")
    grid[down, across] = [label[:1] for label in labels]  # each image is the first letter of its class
    print("\n".join(map("".join, grid)))
